"""What a sweep found, for people: the leaderboard in a terminal, the figures, and the Markdown report."""

from vrray.report.figures import draw_figures
from vrray.report.leaderboard import format_leaderboard
from vrray.report.markdown import render_report

__all__ = ["draw_figures", "format_leaderboard", "render_report"]
