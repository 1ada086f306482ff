"""Copies of an image are found however they were made, and different images are not taken for copies."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from vrray.data import fingerprints
from vrray.data.fingerprints import ALIKE, BYTES, NEAREST, alike, fingerprint, same_picture, views

COLOURS = ("red", "green", "blue", "yellow", "teal", "gray", "black", "brown")


def draw_shapes(count: int, side: int = 64, seed: int = 7) -> list[Image.Image]:
    """One shape each on a plain pale ground."""
    generator = np.random.default_rng(seed)
    images = []
    for number in range(count):
        image = Image.new("RGB", (side, side), tuple(int(level) for level in generator.integers(225, 256, 3)))
        size = int(generator.integers(side // 8, side // 2))
        left, upper = (int(place) for place in generator.integers(0, side - size, 2))
        box, colour = (left, upper, left + size, upper + size), COLOURS[number % len(COLOURS)]
        draw = ImageDraw.Draw(image)
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=colour)
        images.append(image)
    return images


def draw_scenes(count: int) -> list[Image.Image]:
    """What photographs are like to a thumbnail: areas, edges between them, fine grain."""
    generator = np.random.default_rng(11)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        areas = np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC), dtype=np.int64)
        grain = generator.integers(-12, 13, areas.shape)
        images.append(Image.fromarray(np.clip(areas + grain, 0, 255).astype(np.uint8)))
    return images


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "jpeg": as_jpeg,
    "half": scaled(0.5),
    "double": scaled(2),
    "cropped": lambda image: image.crop((1, 0, image.width, image.height - 1)),
    "cropped all round": lambda image: ImageOps.crop(image, 1),
    "padded": lambda image: ImageOps.expand(image, 1, "black"),
    "padded at the side": lambda image: ImageOps.expand(image, (0, 0, 1, 0), "white"),
}


def prints(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.frombuffer(fingerprint(image), np.uint8) for image in images])


def found(asked: Sequence[Image.Image], known: Sequence[Image.Image]) -> set[tuple[int, int]]:
    """What both looks together find."""
    pairs = alike(prints(asked), prints(known))
    return {(i, j) for i, j in pairs if same_picture(views(asked[i]), views(known[j])) is not None}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [*draw_shapes(60), *draw_scenes(20), *draw_shapes(20, side=97, seed=8)]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(copy: str, pictures: list[Image.Image]) -> None:
    copies = [COPIES[copy](image) for image in pictures]
    assert found(copies, pictures) == {(place, place) for place in range(len(pictures))}


def test_neighbours_in_a_large_set_are_different_pictures() -> None:
    images = draw_shapes(1500)
    asked, known = images[:500], images[500:]
    assert list(alike(prints(asked), prints(known)))  # so that the second look has something to refuse
    assert not found(asked, known)


def test_a_shift_of_more_than_the_outermost_pixels_is_another_picture(pictures: list[Image.Image]) -> None:
    moved = [ImageOps.expand(image.crop((0, 0, image.width - 8, image.height)), (8, 0, 0, 0)) for image in pictures]
    assert not found(moved, pictures)


def test_distances_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    centres = generator.integers(40, 216, (12, BYTES))
    asked, known = (
        np.clip(centres[generator.integers(0, 12, count)] + generator.normal(0, 8, (count, BYTES)), 0, 255).astype(
            np.uint8
        )
        for count in (57, 230)
    )
    differences = asked[:, None].astype(float) - known[None]
    distances = np.sqrt((differences**2).mean(axis=-1))
    nearest = np.argsort(distances, axis=1)[:, :NEAREST]
    wanted = {(i, int(j)) for i in range(57) for j in nearest[i] if distances[i, j] <= ALIKE}
    assert len(wanted) > 57 and len(wanted) < 57 * NEAREST  # both limits matter
    assert set(alike(asked, known)) == wanted
    monkeypatch.setattr(fingerprints, "_BLOCK", 50)
    monkeypatch.setattr(fingerprints, "_CHUNK", 10)
    assert set(alike(asked, known)) == wanted


def test_no_images_are_alike() -> None:
    nothing, one = np.zeros((0, BYTES), np.uint8), np.zeros((1, BYTES), np.uint8)
    assert list(alike(nothing, one)) == list(alike(one, nothing)) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 2), (2000, 10)])
def test_images_of_any_size_are_compared(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "orange")
    assert len(fingerprint(image)) == BYTES
    assert same_picture(views(image), views(image)) == 0
