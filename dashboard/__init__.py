"""The Gradio app: reads a store, shows its sweeps, asks Ray Serve for answers."""
