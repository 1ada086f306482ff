import gradio as gr
from dashboard.site import Site

def build(site: Site) -> None:
    gr.Markdown("x")
