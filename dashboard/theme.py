"""How the dashboard looks: Gradio's theme, and the style of what the pages draw themselves, light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

_SANS = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Quiet greys, one blue for what can be acted on; no font is fetched from anywhere."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=_SANS,
        font_mono=_MONO,
        radius_size="md",
        text_size="md",
        spacing_size="md",
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f141b",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171e27",
        background_fill_secondary="#f6f7f9",
        background_fill_secondary_dark="#0f141b",
        body_text_color="#1a2230",
        body_text_color_dark="#e6eaf0",
        body_text_color_subdued="#566072",
        body_text_color_subdued_dark="#a3afc0",
        border_color_primary="#dde2e9",
        border_color_primary_dark="#2b3644",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171e27",
        block_border_color="#dde2e9",
        block_border_color_dark="#2b3644",
        block_label_text_color="#566072",
        block_label_text_color_dark="#a3afc0",
        block_title_text_color="#3a4456",
        block_title_text_color_dark="#c4cdd9",
        block_title_text_size="*text_sm",
        block_shadow="none",
        input_background_fill="#ffffff",
        input_background_fill_dark="#121820",
        input_border_color="#c9d0da",
        input_border_color_dark="#364353",
        button_primary_background_fill="#1d5fbf",
        button_primary_background_fill_dark="#2f74d8",
        button_primary_background_fill_hover="#174e9e",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1e2733",
        button_secondary_border_color="#c9d0da",
        button_secondary_border_color_dark="#364353",
        button_secondary_text_color="#1a2230",
        button_secondary_text_color_dark="#e6eaf0",
    )


CSS = (Path(__file__).parent / "style.css").read_text()
