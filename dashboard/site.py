"""What every page is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dashboard.catalogue import Catalogue
from vrray.store import Store


@dataclass(frozen=True)
class Site:
    store: Store
    catalogue: Catalogue
    answers: Any | None = None
    votes: Any | None = None
