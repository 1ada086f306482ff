"""Base models: presets, loading, the decoder's place, the demo LVLM."""
