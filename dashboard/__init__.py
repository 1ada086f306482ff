"""The Gradio dashboard: it reads a store and asks a Ray Serve deployment for answers."""
