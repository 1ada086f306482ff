"""What every page of the dashboard is given."""

from __future__ import annotations

from dataclasses import dataclass

from dashboard.answers import Answers
from dashboard.catalogue import Catalogue
from dashboard.votes import Votes
from vrray.store import Store


@dataclass(frozen=True)
class Site:
    """The store, what is read from it, and, where there are any, who answers and where votes go."""

    store: Store
    catalogue: Catalogue
    answers: Answers | None = None
    votes: Votes | None = None
