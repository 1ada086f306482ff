"""What the dashboard reads from a store: sweeps, their tables and live states, examples, layer scores, images."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dashboard.board import Board
from vrray.data.images import Images
from vrray.errors import StoreError
from vrray.scores.table import LayerScores
from vrray.store import Store, read_parquet

T = TypeVar("T")
_KEPT = 64  # files that are remembered
_EVALUATION = "evaluation"


class Catalogue:
    """A reader of a store; safe to share between threads. What was read is read again when its file changes.

    Raises:
        StoreError: from every method: there is no such thing, or it cannot be read; the message says what to do.
    """

    def __init__(self, store: Store):
        self.store = store
        self._lock = threading.Lock()
        self._read: OrderedDict[tuple[str, str], tuple[Any, Any]] = OrderedDict()

    def sweeps(self) -> list[str]:
        """The names of all sweeps, finished or not, newest first."""
        names = self._listed("sweeps")
        stamps = {name: max(self._stamp(name, "table.parquet"), self._stamp(name, "live.json")) for name in names}
        return sorted((name for name in names if stamps[name]), key=lambda name: (-stamps[name], name))

    def measured_scores(self) -> list[str]:
        """The names of measured layer scores (`jobs/score_layers.py`)."""
        return self._listed("layer-scores")

    def board(self, sweep: str) -> Board:
        """The table of a finished sweep, ready to be sorted and filtered."""
        return self._cached(
            f"sweeps/{sweep}/table.parquet", "board", lambda data: Board.of(_table(data)), _finish(sweep)
        )

    def table(self, sweep: str) -> pa.Table:
        """The rows of a finished sweep, a row a variant (vrray/sweep/table.py)."""
        table: pa.Table = self._cached(f"sweeps/{sweep}/table.parquet", "table", _table, _finish(sweep))
        return table

    def about(self, sweep: str) -> dict[str, Any]:
        """What sweep.json holds: `context`, `base`, and `scores` by delta."""
        about: dict[str, Any] = self._cached(f"sweeps/{sweep}/sweep.json", "json", json.loads, _finish(sweep))
        return about

    def context(self, sweep: str) -> dict[str, str]:
        """What ran, where, with which options."""
        return dict(self.about(sweep).get("context", {}))

    def ranking_scores(self, sweep: str) -> dict[str, LayerScores]:
        """By delta, the layer scores that its pruning plans follow, as far as the sweep has any."""
        return {key: LayerScores.from_json(found) for key, found in self.about(sweep).get("scores", {}).items()}

    def live(self, sweep: str) -> dict[str, Any] | None:
        """The state of a sweep that runs or ran (vrray/sweep/live.py); None for one that left none."""
        name = f"sweeps/{sweep}/live.json"
        if self.store.stamp(name) is None:
            return None
        state: dict[str, Any] = self._cached(name, "json", json.loads, "it is written anew while the sweep runs")
        return state

    def scores(self, name: str) -> tuple[dict[str, LayerScores], pa.Table]:
        """Measured layer scores by name, and their rank correlations (`a`, `b`, `rank_correlation`)."""
        remedy = f"measure them with jobs/score_layers.py --name {name}"
        table, pairs = (
            self._cached(f"layer-scores/{name}/{file}.parquet", "table", _table, remedy)
            for file in ("scores", "correlations")
        )
        found: dict[str, LayerScores] = {}
        for score in table["score"].unique().to_pylist():
            rows = table.filter(pc.equal(table["score"], score)).sort_by("layer").to_pylist()
            values, errors = (tuple(row[column] for row in rows) for column in ("value", "standard_error"))
            found[score] = LayerScores(score, values, errors, rows[0]["samples"])
        return found, pairs

    def compared(self, sweep: str) -> list[str]:
        """The variants whose answers the store holds, in the order of the table."""
        return list(dict.fromkeys(self._beside(sweep, "evaluations.parquet")["variant"].to_pylist()))

    def examples(self, sweep: str, variant: str) -> pa.Table:
        """A variant's answers on the select split, a row a question.

        Columns: `task`, `ability`, `metric`, `split`, `example`, `question`, `answer`, `image`, `options`,
        `prediction`, `score`.
        """
        listed = self._beside(sweep, "evaluations.parquet")
        wanted = pc.and_(pc.equal(listed["variant"], variant), pc.equal(listed["split"], "select"))
        keys = listed.filter(wanted)["evaluation"].to_pylist()
        if not keys:
            raise StoreError(f"sweep {sweep}: the store holds no answers of {variant!r}; {_finish(sweep)}")
        questions = self._beside(sweep, "questions.parquet")
        records = self._records(keys[0])
        places = {asked: place for place, asked in enumerate(_asked(questions))}
        known = [(place, places[asked]) for place, asked in enumerate(_asked(records)) if asked in places]
        answers = records.take(pa.array([answer for answer, _ in known], pa.int64()))
        asked = questions.take(pa.array([question for _, question in known], pa.int64()))
        for name in ("prediction", "score"):
            asked = asked.append_column(name, answers[name])
        return asked

    def image(self, sweep: str, name: str) -> Image.Image | None:
        """An image of the sweep's questions; None where no question names it.

        Raises:
            DataError: it cannot be read or decoded.
        """
        if name not in self._image_names(sweep):
            return None
        return self._images(sweep).open(name)

    def file(self, sweep: str, name: str) -> bytes:
        """One of a sweep's own files, such as report.md or figures/layer_map.png."""
        return self.store.read_bytes(f"sweeps/{sweep}/{name}")

    def _listed(self, folder: str) -> list[str]:
        try:
            return self.store.names(folder)
        except OSError as error:
            raise StoreError(
                f"{self.store.shown()} cannot be read: {error}; check --store and its access rights"
            ) from error

    def _stamp(self, sweep: str, file: str) -> int:
        found = self.store.stamp(f"sweeps/{sweep}/{file}")
        return max(1, found[0]) if found else 0

    def _records(self, key: str) -> pa.Table:
        with self.store.open(_EVALUATION, key) as folder:
            table = read_parquet(folder / "examples.parquet")
        return table.select(["task", "split", "example", "prediction", "score"])

    def _beside(self, sweep: str, file: str) -> pa.Table:
        remedy = (
            "the sweep is unfinished, or was run before its questions were kept: run the same command again, "
            "what is finished is taken from the store"
        )
        return self._cached(f"sweeps/{sweep}/{file}", "table", _table, remedy)

    def _image_names(self, sweep: str) -> frozenset[str]:
        def names(data: bytes) -> frozenset[str]:
            return frozenset(_table(data)["image"].unique().to_pylist()) - {None}

        return self._cached(f"sweeps/{sweep}/questions.parquet", "images", names, _finish(sweep))

    def _images(self, sweep: str) -> Images:
        def images(data: bytes) -> Images:
            about = json.loads(data)
            if not about["embedded"]:
                return Images(about["roots"])
            from vrray.data.ingest import with_embedded  # takes Ray Data along

            return with_embedded(self.store, Images(about["roots"]), about["embedded"])

        return self._cached(f"sweeps/{sweep}/images.json", "folders", images, _finish(sweep))

    def _cached(self, name: str, kind: str, read: Callable[[bytes], T], remedy: str) -> T:
        """What `read` makes of a file, remembered until the file changes."""
        try:
            stamp = self.store.stamp(name)
        except OSError as error:
            raise StoreError(f"{self.store.shown()}: {name} cannot be read: {error}") from error
        if stamp is None:
            raise StoreError(f"{self.store.shown()}: there is no {name}; {remedy}")
        with self._lock:
            if (name, kind) in self._read and self._read[name, kind][0] == stamp:
                self._read.move_to_end((name, kind))
                known: T = self._read[name, kind][1]
                return known
        try:
            value = read(self.store.read_bytes(name))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise StoreError(f"{self.store.shown()}: {name} cannot be read ({error}); {remedy}") from error
        with self._lock:
            self._read[name, kind] = stamp, value
            while len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return value


def _table(data: bytes) -> pa.Table:
    return read_parquet(pa.BufferReader(data))


def _asked(table: pa.Table) -> list[tuple[str, ...]]:
    return list(zip(*(table[name].to_pylist() for name in ("task", "split", "example")), strict=True))


def _finish(sweep: str) -> str:
    return f"the sweep is unfinished: run jobs/sweep.py --name {sweep} with the same options again to go on"
