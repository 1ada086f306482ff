"""Base models: presets, loading, converting, the decoder's place, the demo LVLM."""

from vrray.models.presets import Preset, presets

__all__ = ["Preset", "presets"]
