"""Images inside a benchmark's own files: found for every question, checked, written once, asked about."""

from __future__ import annotations

import base64
import csv
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground

from vrray.data.images import Images, check_image
from vrray.errors import DataError, SpecError
from vrray.evaluate import embedded
from vrray.evaluate.benchmarks import files
from vrray.evaluate.questions import AskedTask
from vrray.evaluate.task_file import read_tasks
from vrray.store import Store
from vrray.sweep.answering import answer_parts
from vrray.sweep.answers import AnswersJob, Variant, cut_parts, read_answers
from vrray.sweep.evaluation import with_images

COLOURS = ("red", "lime", "blue", "white", "orange", "purple")
MMBENCH = ("index", "question", "A", "B", "category", "image", "answer", "split")


def picture(colour: str, kind: str = "PNG", side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that says of itself that it has 50,000 x 50,000 pixels."""
    data = bytearray(picture("red"))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def write_mmbench(path: Path, cells: list[str], first: int = 1) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(MMBENCH)
        for number, cell in enumerate(cells, start=first):
            writer.writerow((number, f"Which {number}?", "a cat", "a dog", "pets", cell, "B", "dev"))


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_mmmu(folder: Path) -> None:
    for subject in ("Math", "Art"):
        rows = [
            {
                "id": f"validation_{subject}_{number}",
                "question": "Which is <image 1>?",
                "options": "['a cat', 'a dog']",
                "answer": "B",
                "question_type": "multiple-choice",
                "image_1": struct(picture(COLOURS[number + 2 * (subject == "Art")], "JPEG"), "../../image.jpg"),
                "image_2": struct(None) if number else struct(picture("black")),
            }
            for number in range(2)
        ]
        write_parquet(folder / subject / "validation-00000-of-00001.parquet", rows)


def ai2d_row(colour: str) -> dict[str, Any]:
    return {"question": "Which?", "options": ["a", "b"], "answer": "1", "image": struct(picture(colour))}


def chart_row(colour: str) -> dict[str, Any]:
    return {"type": "human_test", "question": "How many?", "answer": "2", "image": struct(picture(colour))}


def hallusion_row(number: int, colour: str | None) -> dict[str, Any]:
    parts = {"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": str(number), "question_id": "0"}
    image = struct(picture(colour)) if colour else None
    return {**parts, "question": "Is it?", "gt_answer": "1", "visual_input": "1" if colour else "0", "image": image}


def write_official(folder: Path, benchmark: str) -> list[str | None]:
    """Official files with images inside; the colour of each question's image."""
    folder.mkdir()
    if benchmark == "mmbench":
        cells = [in_base64(picture(colour)) for colour in COLOURS[:2]]
        write_mmbench(folder / "mmbench_dev_20230712.tsv", [*cells, "1", cells[1]])
        return ["red", "lime", "red", "lime"]
    if benchmark == "mmmu":
        write_mmmu(folder)
        return ["blue", "white", "red", "lime"]
    if benchmark == "ai2d":
        write_parquet(folder / "data" / "test-00000-of-00001.parquet", [ai2d_row(c) for c in ("red", "red", "blue")])
        return ["red", "red", "blue"]
    if benchmark == "chartqa":
        write_parquet(folder / "data" / "test-00000-of-00001.parquet", [chart_row(c) for c in ("blue", "red")])
        return ["blue", "red"]
    rows = [hallusion_row(0, None), hallusion_row(1, "orange"), hallusion_row(2, "red")]
    write_parquet(folder / "data" / "image-00000-of-00001.parquet", rows)
    return [None, "orange", "red"]


def read(folder: Path, store: Store, **entry: Any) -> AskedTask:
    inside = folder / "data"
    annotations = str(inside if inside.is_dir() else folder)
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"annotations": annotations, **entry}))
    (task,) = read_tasks([str(folder / "tasks.yaml")], split="test", limit=None, short_answers=True, store=store)
    return task


def colour_of(task: AskedTask, name: str) -> tuple[int, int, int]:
    image = Images({task.name: task.images or ""}).open(f"{task.name}:{name}")
    red, green, blue = image.getpixel((10, 10))  # type: ignore[misc]
    return red, green, blue


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("benchmark", ["mmbench", "mmmu", "ai2d", "chartqa", "hallusionbench"])
def test_every_question_gets_the_image_of_its_row(benchmark: str, store: Store, tmp_path: Path) -> None:
    colours = write_official(tmp_path / "official", benchmark)
    task = with_images_of(read(tmp_path / "official", store, benchmark=benchmark))
    assert [question.image is None for question in task.questions] == [colour is None for colour in colours]
    for question, colour in zip(task.questions, colours, strict=True):
        if question.image is None or colour is None:
            continue
        wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert isinstance(wanted, tuple)
        assert all(abs(a - b) < 4 for a, b in zip(colour_of(task, question.image), wanted, strict=True))
    written = {path.name for path in Path(task.images or "").iterdir()} - {embedded.ROWS}
    assert written == {question.image for question in task.questions} - {None}  # nothing twice
    assert len(written) == len(set(colours) - {None})
    assert Path(task.images or "").is_relative_to(store.uri)
    assert not task.problems


def with_images_of(task: AskedTask) -> AskedTask:
    return with_images(task, Images({task.name: task.images or ""}))


def test_a_folder_of_images_goes_first(store: Store, tmp_path: Path) -> None:
    write_official(tmp_path / "official", "mmbench")
    task = read(tmp_path / "official", store, benchmark="mmbench", images="photos")
    assert task.images == str(tmp_path / "official" / "photos")
    assert [question.image for question in task.questions] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert not store.names(embedded.KIND)


def test_images_are_written_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official(tmp_path / "official", "ai2d")
    first = read(tmp_path / "official", store, benchmark="ai2d")
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "check_image", lambda *_: pytest.fail("written again"))
        assert read(tmp_path / "official", store, benchmark="ai2d") == first
        file = next((tmp_path / "official" / "data").iterdir())
        file.rename(file.with_name("test.parquet"))
        assert read(tmp_path / "official", store, benchmark="ai2d").images == first.images
    write_parquet(tmp_path / "official" / "data" / "test.parquet", [ai2d_row("white")])
    assert read(tmp_path / "official", store, benchmark="ai2d").images != first.images


def test_images_that_cannot_be_used_are_problems_of_their_questions(store: Store, tmp_path: Path) -> None:
    (tmp_path / "official").mkdir()
    whole, broken = picture("red"), picture("lime")[:60]
    cells = [in_base64(data) for data in (whole, broken, bomb(), b"no image " * 20)]
    write_mmbench(tmp_path / "official" / "mmbench_dev_en.tsv", [*cells, ""])
    task = with_images_of(read(tmp_path / "official", store, benchmark="mmbench"))
    assert set(task.problems) == {1, 2, 3, 4}
    assert "mmbench_dev_en.tsv, row 2" in task.problems[1] and "damaged" in task.problems[1]
    assert "2500000000 pixels" in task.problems[2] and "scale it down" in task.problems[2]
    assert "not a PNG" in task.problems[3]
    assert "the benchmark's files name no image for it" in task.problems[4]
    assert sorted(path.name for path in Path(task.images or "").iterdir()) == ["000001.png", embedded.ROWS]
    few = with_images_of(read(tmp_path / "official", store, benchmark="mmbench", limit=3))
    ids = {few.questions[place].id for place in few.problems}
    assert ids == {question.id for question in few.questions} & {"2", "3", "4", "5"} != set()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["!" * 100], "row 1: field 'image' is not base64"),
        ([in_base64(picture("red")), "7"], "row 2: its image is that of row '7', which is not above it"),
    ],
)
def test_cells_that_hold_no_image_are_errors(cells: list[str], message: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "official").mkdir()
    write_mmbench(tmp_path / "official" / "mmbench_dev_en.tsv", cells)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "official", store, benchmark="mmbench")
    assert not store.keys(embedded.KIND)


def test_files_without_images_still_need_a_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "official").mkdir()
    rows = [{"type": "human_test", "question": "How many?", "answer": "2", "imgname": "a.png"}]
    write_parquet(tmp_path / "official" / "data" / "test-0.parquet", rows)
    with pytest.raises(SpecError, match="say in which folder these are: images: FOLDER"):
        read(tmp_path / "official", store, benchmark="chartqa")


def test_few_rows_are_held_at_a_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are read without their images, and images are checked while the rest of the file is still unread."""
    (tmp_path / "official").mkdir()
    write_mmbench(tmp_path / "official" / "mmbench_dev_en.tsv", [in_base64(picture(colour)) for colour in COLOURS])
    read_rows: list[str] = []
    first_check: list[int] = []
    make, check = files.Row, check_image

    def note(place: str, values: Any) -> Any:
        read_rows.append(place)
        return make(place, values)

    def look(data: bytes, name: str) -> Any:
        first_check.append(len(read_rows))
        return check(data, name)

    task = read(tmp_path / "official", Store(tmp_path / "other"), benchmark="mmbench")
    monkeypatch.setattr(files, "Row", note)
    monkeypatch.setattr(embedded, "check_image", look)
    assert read(tmp_path / "official", store, benchmark="mmbench").questions == task.questions
    assert first_check == [count + len(COLOURS) for count in range(1, len(COLOURS) + 1)]


def test_models_are_asked_about_them(ground: Ground, tmp_path: Path, one_rank: None) -> None:
    store = Store(tmp_path / "answers")
    (tmp_path / "official").mkdir()
    write_mmbench(tmp_path / "official" / "dev.tsv", [in_base64(picture(colour)) for colour in COLOURS])
    task = with_images_of(read(tmp_path / "official", store, benchmark="mmbench", max_new_tokens=4))
    model = {"base": "b", "template": "chat", "precision": "fp32"}
    parts = {blind: cut_parts(Variant("model"), task, model, blind=blind) for blind in (False, True)}
    images = Images({task.name: task.images or ""})
    shape = (IMAGE_TOKENS, TOWER_WIDTH)
    job = AnswersJob("job", (*parts[False], *parts[True]), (), images, shape, 4)
    answer_parts(replace(ground.workspace(), store=store), job, lambda _: None)
    said = {
        blind: [answer.prediction for part in own for answer in read_answers(store, part)]
        for blind, own in parts.items()
    }
    assert len(said[False]) == len(said[True]) == len(COLOURS)
    assert None not in said[False] and said[False] != said[True]
