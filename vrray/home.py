"""Where vrray keeps what it builds for itself: the demo model, the demo data, remembered hashes."""

import os
from pathlib import Path


def vrray_home() -> Path:
    """`$VRRAY_HOME`, or `vrray` below the user's cache directory."""
    explicit = os.environ.get("VRRAY_HOME")
    if explicit:
        return Path(explicit).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vrray"
