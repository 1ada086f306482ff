from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import IMAGE_TOKENS, draw_photos

from vrray.data.held_out import held_out_tasks
from vrray.data.images import Images, examine
from vrray.data.ingest import (
    BLOCK_ROWS,
    Ingested,
    all_images,
    candidates_in,
    image_hashes,
    ingest,
    trained_images,
    with_embedded,
)
from vrray.data.ingest_block import PART, Choice, RowSpec, Source
from vrray.data.rows import KIND, Rows
from vrray.errors import DataError
from vrray.models.loading import base_identity
from vrray.store import Store

ALL = Choice()


def record(number: int, image: str | list[str] | None = None, answer: str = "red") -> dict[str, Any]:
    images = [image] if isinstance(image, str) else image or []
    asked = "<image>" * len(images) + "\nWhich colour?"
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": str(number), **({"image": image} if image else {}), "conversations": said}


def write(path: Path, records: Sequence[dict[str, Any]]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return Source(str(path))


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    (tmp_path / "photos").mkdir()
    return draw_photos(tmp_path / "photos", 20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def ingested(
    tmp_path: Path,
    tiny_model: Path,
    store: Store,
    *sources: Source,
    choice: Choice = ALL,
    roots: dict[str, str] | None = None,
    **options: Any,
) -> Ingested:
    spec = RowSpec(str(tiny_model), base_identity(tiny_model), IMAGE_TOKENS, "chat", 256)
    images = Images(roots or {"": str(tmp_path / "photos")})
    return ingest(store, sources, spec, choice, images, **options)


def ids(store: Store, made: Ingested) -> list[str]:
    with store.open(KIND, made.key) as folder:
        return [row.id for row in Rows(folder)]


def test_records_become_rows_with_their_images(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    records = [record(n, name) for n, name in enumerate(photos)] + [record(20), record(21, photos[:2])]
    made = ingested(tmp_path, tiny_model, store, write(tmp_path / "a.jsonl", records), choice=Choice(in_order=True))
    assert ids(store, made) == [str(n) for n in range(22)]
    assert made.rows == 22 and made.counts["records"] == 22 and made.rejected is None
    assert list(image_hashes(store, made.key)) and set(image_hashes(store, made.key)) == set(photos)
    with store.open(KIND, made.key) as folder:
        assert Rows(folder)[21].images == tuple(photos[:2])
        assert made.longest == int(Rows(folder).lengths.max())


def test_a_second_start_reads_nothing_again(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", [record(n, name) for n, name in enumerate(photos)])
    made = ingested(tmp_path, tiny_model, store, source)

    def fail(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("vrray.data.ingest_block.read_block", fail)
    assert ingested(tmp_path, tiny_model, store, source) == made
    assert store.keys(PART) == []


def test_unusable_records_are_listed_and_looked_at_again(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    records = [record(n, name) for n, name in enumerate(photos)]
    records[3]["conversations"].pop()
    records[5]["image"] = "absent.png"
    source = write(tmp_path / "a.jsonl", records)
    made = ingested(tmp_path, tiny_model, store, source, max_rejected=0.1)
    assert (made.rows, made.counts["rejected"]) == (18, 2)
    assert made.rejected is not None and "2 rejected" in made.summary() and made.rejected in made.summary()
    listed = pq.read_table(made.rejected).to_pylist()
    assert [(row["row"], row["id"], row["image"]) for row in listed] == [(4, "3", photos[3]), (6, "5", "absent.png")]
    assert {row["source"] for row in listed} == {source.location}
    assert "lack the last answer" in listed[0]["reason"] and "absent.png" in listed[1]["reason"]

    assert ingested(tmp_path, tiny_model, store, source, max_rejected=0.1) == made
    (tmp_path / "photos" / "absent.png").write_bytes((tmp_path / "photos" / photos[0]).read_bytes())
    again = ingested(tmp_path, tiny_model, store, source, max_rejected=0.1)
    assert (again.rows, again.counts["rejected"]) == (19, 1)
    assert again.key != made.key


def test_too_many_unusable_records_stop_the_run_and_are_listed(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    source = write(tmp_path / "a.jsonl", [record(n, "absent.png" if n < 3 else photos[n]) for n in range(20)])
    with pytest.raises(DataError, match=r"3 of the first 20 records .*--max-rejected 0.1 allows.*absent\.png") as error:
        ingested(tmp_path, tiny_model, store, source, max_rejected=0.1)
    listed = str(error.value).split("listed in ")[1].rstrip(".")
    assert pq.read_table(listed).num_rows == 3
    made = ingested(tmp_path, tiny_model, store, source, max_rejected=0.2)
    with pytest.raises(DataError, match=r"more than --max-rejected 0.1 allows"):
        ingested(tmp_path, tiny_model, store, source, max_rejected=0.1)
    assert made.rows == 17


def test_images_that_were_missing_are_looked_for_again(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    (tmp_path / "photos").mkdir()
    names = [f"{number}-grey.png" for number in range(3, 20, 4)]
    source = write(tmp_path / "a.jsonl", [record(n, name) for n, name in enumerate(names)])
    for _ in range(2):
        with pytest.raises(DataError, match=f"{len(names)} of the first {len(names)} records"):
            ingested(tmp_path, tiny_model, store, source)
    draw_photos(tmp_path / "photos", 20)
    assert ingested(tmp_path, tiny_model, store, source).rows == len(names)


def test_data_without_a_usable_row_is_refused(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    with pytest.raises(DataError, match="none of the 1 records"):
        ingested(
            tmp_path,
            tiny_model,
            store,
            write(tmp_path / "a.jsonl", [record(1)]),
            choice=Choice(with_image=True),
        )


def test_an_interrupted_run_goes_on_with_what_is_missing(
    tmp_path: Path, tiny_model: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", [record(n) for n in range(BLOCK_ROWS + 10)])
    from vrray.data import ingest_block as module

    read, begun = module.read_block, []

    def read_once(block: Any) -> Any:
        begun.append(block.first)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return read(block)

    monkeypatch.setattr(module, "read_block", read_once)
    with pytest.raises(KeyboardInterrupt):
        ingested(tmp_path, tiny_model, store, source)
    made = ingested(tmp_path, tiny_model, store, source)
    assert begun == [0, BLOCK_ROWS, BLOCK_ROWS]
    assert made.rows == BLOCK_ROWS + 10


def test_an_image_is_opened_once_however_many_blocks_use_it(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vrray.data import ingest as module

    opened: list[str] = []
    read = Images.read
    monkeypatch.setattr(Images, "read", lambda images, name: opened.append(name) or read(images, name))
    monkeypatch.setattr(module, "BLOCK_ROWS", 20)
    records = [record(n, name) for n, name in enumerate(photos * 2)]
    made = ingested(tmp_path, tiny_model, store, write(tmp_path / "a.jsonl", records))
    assert made.rows == 40 and sorted(opened) == sorted(photos)
    assert set(image_hashes(store, made.key)) == set(photos)


def test_of_two_runs_at_the_same_time_the_slower_one_takes_what_the_other_made(
    tmp_path: Path, tiny_model: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vrray.data import ingest as module

    source = write(tmp_path / "a.jsonl", [record(n) for n in range(30)])
    run, others = module.run_tasks, []

    def run_while_another_one_ends(*arguments: Any) -> Any:
        finished = run(*arguments)
        monkeypatch.setattr(module, "run_tasks", run)
        others.append(ingested(tmp_path, tiny_model, store, source))
        return finished

    monkeypatch.setattr(module, "run_tasks", run_while_another_one_ends)
    assert ingested(tmp_path, tiny_model, store, source) == others[0]


def test_shares_are_nested_and_follow_the_seed(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    source = write(tmp_path / "a.jsonl", [record(n) for n in range(400)])

    def drawn(**options: Any) -> set[str]:
        return set(ids(store, ingested(tmp_path, tiny_model, store, source, choice=Choice(**options))))

    tenth, quarter, whole = (drawn(fraction=fraction) for fraction in (0.1, 0.25, 1.0))
    assert tenth < quarter < whole == {str(n) for n in range(400)}
    assert 20 < len(tenth) < 60 and 70 < len(quarter) < 130
    assert drawn(fraction=0.1, seed=1) != tenth
    assert len(drawn(limit=30)) == 30
    assert drawn(limit=10) < drawn(limit=30)


def test_sources_are_mixed_by_weight(tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]) -> None:
    (tmp_path / "other").mkdir()
    names = draw_photos(tmp_path / "other", 4)
    first = write(tmp_path / "a.jsonl", [record(n, photos[n]) for n in range(10)])
    second = write(tmp_path / "b.jsonl", [record(100 + n, names[n]) for n in range(4)])
    sources = [Source(first.location, "0", 0.5), Source(second.location, "1", 2.0)]
    roots = {"0": str(tmp_path / "photos"), "1": str(tmp_path / "other")}
    made = ingested(tmp_path, tiny_model, store, *sources, roots=roots)
    drawn = ids(store, made)
    assert len(drawn) == 5 + 2 * 4
    assert sorted(name for name in drawn if len(name) == 3) == sorted(["100", "101", "102", "103"] * 2)
    assert {name.partition(":")[0] for name in image_hashes(store, made.key)} == {"0", "1"}
    assert len(image_hashes(store, made.key)) == 5 + 4


def test_rows_are_held_out_by_image(tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]) -> None:
    records = [record(10 * n + turn, name) for n, name in enumerate(photos) for turn in range(3)]
    source = write(tmp_path / "a.jsonl", records)
    made = ingested(tmp_path, tiny_model, store, source, choice=Choice(held_out=5))
    candidates = candidates_in(store, made.key)
    held = {split: {c.image for c in candidates if c.split == split} for split in ("select", "test")}
    with store.open(KIND, made.key) as folder:
        trained = {image for row in Rows(folder) for image in row.images}
    assert held["select"] and held["test"]
    assert not held["select"] & held["test"] and not (held["select"] | held["test"]) & trained
    assert made.counts["held_out"] + made.counts["rows"] == 60
    assert set(image_hashes(store, made.key)) == trained | held["select"] | held["test"]
    (group,) = held_out_tasks(candidates, "test", 5)
    assert (group.task.name, group.task.metric, group.floor) == ("held-out", "exact", 1.0)  # the answer is always red
    smaller = ingested(tmp_path, tiny_model, store, source, choice=Choice(held_out=5, fraction=0.3))
    assert held_out_tasks(candidates_in(store, smaller.key), "test", 5)[0].examples == group.examples


def test_long_answers_are_scored_by_their_likelihood(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    records = [record(n, name, "a red circle and a small square") for n, name in enumerate(photos)]
    made = ingested(tmp_path, tiny_model, store, write(tmp_path / "a.jsonl", records), choice=Choice(held_out=5))
    (group,) = held_out_tasks(candidates_in(store, made.key), "select", 5)
    assert group.task.metric == "likelihood" and "exp(-loss)" in group.task.description


def test_too_little_data_to_hold_out_says_so(tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]) -> None:
    made = ingested(
        tmp_path,
        tiny_model,
        store,
        write(tmp_path / "a.jsonl", [record(n, photos[n]) for n in range(2)]),
        choice=Choice(held_out=5),
    )
    with pytest.raises(DataError, match="choose --tasks"):
        held_out_tasks(candidates_in(store, made.key), "select", 5)


def test_embedded_images_come_along(tmp_path: Path, tiny_model: Path, photos: list[str], uri: str) -> None:
    store = Store(uri)
    data = [(tmp_path / "photos" / name).read_bytes() for name in photos[:6]]
    said = [record(n, name)["conversations"] for n, name in enumerate(photos[:6])]
    columns = {"id": [str(n) for n in range(6)], "image": [{"bytes": d, "path": None} for d in data]}
    pq.write_table(pa.table({**columns, "conversations": said}), tmp_path / "a.parquet")
    source = Source(str(tmp_path / "a.parquet"))
    made = ingested(tmp_path, tiny_model, store, source, choice=Choice(in_order=True))
    images = with_embedded(store, Images({}), [made.key])
    with store.open(KIND, made.key) as folder:
        rows = list(Rows(folder))
    assert [images.read(row.images[0]) for row in rows] == data
    assert made.embedded


def test_a_longer_run_begins_with_the_images_of_a_shorter_one(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    source = write(tmp_path / "a.jsonl", [record(n, name) for n, name in enumerate(photos)])
    shorter, longer = (
        list(image_hashes(store, ingested(tmp_path, tiny_model, store, source, choice=Choice(limit=limit)).key))
        for limit in (5, 12)
    )
    assert longer[:5] == shorter and len(longer) == 12 and shorter != photos[:5]


def test_weights_that_leave_no_row_are_refused(
    tmp_path: Path, tiny_model: Path, store: Store, photos: list[str]
) -> None:
    source = replace(write(tmp_path / "a.jsonl", [record(n, photos[n]) for n in range(4)]), weight=0.1)
    with pytest.raises(DataError, match="--data-weights leave none of the 4 training rows"):
        ingested(tmp_path, tiny_model, store, source)


def test_fingerprints_are_kept_with_the_images(
    tmp_path: Path, tiny_model: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch, s3_folder: str
) -> None:
    monkeypatch.setattr("vrray.data.ingest.BLOCK_ROWS", 15)  # two blocks, which share images
    store = Store(s3_folder)  # downloads go away, mappings stay
    records = [record(n, name) for n, name in enumerate(photos + photos[:7])] + [record(99)]
    source = write(tmp_path / "a.jsonl", records)
    made = ingested(tmp_path, tiny_model, store, source, choice=Choice(held_out=5))
    held = {c.image for c in candidates_in(store, made.key) if c.split != "train" and c.image}
    trained = trained_images(store, made.key)
    assert held and set(trained.names) == set(photos) - held
    opened = {name: examine((tmp_path / "photos" / name).read_bytes(), name) for name in photos}
    assert trained.hashes == [opened[name].hash for name in trained.names]
    assert [row.tobytes() for row in trained.fingerprints] == [opened[name].fingerprint for name in trained.names]
    assert all_images(store, made.key, {*held, "unknown.png"}) == {name: opened[name] for name in held}


def test_texts_alone_have_no_fingerprints(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    made = ingested(tmp_path, tiny_model, store, write(tmp_path / "a.jsonl", [record(n) for n in range(3)]))
    trained = trained_images(store, made.key)
    assert (trained.names, trained.hashes, len(trained.fingerprints)) == ([], [], 0)
