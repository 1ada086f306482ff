"""Whether two image files show the same picture, also where one is re-encoded, resized or cropped by a pixel.

Two looks decide. The first compares thumbnails, which are taken when images are opened anyway and kept with the rows:
all pairs of thousands with hundreds of thousands in seconds. The second compares the images of the pairs that are left,
at 16 x 16 pixels. docs/evaluation.md has the distances that the limits follow from. Light to import.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BYTES = 8 * 8 * 3  # of a fingerprint
ALIKE = 12.0  # root mean square difference of two fingerprints, in grey levels of 255, up to which images are compared
# Distance of two whole images up to which they are the same picture: a share of their contrast, since what JPEG and
# resizing change stands at edges, but no less and no more than the bounds.
SHARE, WHOLE = 0.07, (2.6, 4.5)
CROPPED = 1.5  # distance of two images of which one or both lack the outermost pixels
NEAREST = 8  # images that each one is compared with
_BLOCK, _CHUNK = 1 << 15, 512  # fingerprints in a matrix product
_LUMA = 16 * 16  # values of a view, before those of chroma
_VIEWED = 128  # longer side of the images that are compared
_BILINEAR = Image.Resampling.BILINEAR


def fingerprint(image: Image.Image) -> bytes:
    """A thumbnail of 8 x 8 RGB pixels of an RGB image, without its outermost tenth, where frames are."""
    thumbnail = image.resize((10, 10), _BILINEAR)
    return np.asarray(thumbnail)[1:-1, 1:-1].tobytes()


def alike(asked: NDArray[np.uint8], known: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """The pairs (row of `asked`, row of `known`) to look at: of each asked image its nearest, where they are alike.

    `known` is read a block at a time and may be mapped into memory.

    Args:
        asked, known: fingerprints, `[images, BYTES]`.
    """
    if not len(asked):
        return
    means = asked.mean(axis=1)
    order = np.argsort(means)
    limit = BYTES * ALIKE**2
    best = np.full((len(asked), NEAREST), np.inf, dtype=np.float32)
    place = np.zeros((len(asked), NEAREST), dtype=np.int64)
    for begin in range(0, len(known), _BLOCK):
        block = known[begin : begin + _BLOCK].astype(np.float32) - 128
        levels = block.mean(axis=1) + 128
        sorting = np.argsort(levels)
        block, levels = block[sorting], levels[sorting]
        lengths = (block**2).sum(axis=1)
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            # Means of two thumbnails differ by no more than the thumbnails do.
            low, high = np.searchsorted(levels, [means[rows[0]] - ALIKE, means[rows[-1]] + ALIKE])
            if low == high:
                continue
            values = asked[rows].astype(np.float32) - 128
            squares = (values**2).sum(axis=1)[:, None] + lengths[low:high] - 2 * (values @ block[low:high].T)
            near = np.flatnonzero((squares <= limit).any(axis=1))
            if len(near):
                _keep_nearest(best, place, rows[near], squares[near], begin + sorting[low:high])
    for row, column in zip(*np.nonzero(best <= limit), strict=True):
        yield int(row), int(place[row, column])


def _keep_nearest(
    best: NDArray[np.float32],
    place: NDArray[np.int64],
    rows: NDArray[np.int64],
    squares: NDArray[np.float32],
    places: NDArray[np.int64],
) -> None:
    """Take of each row what is nearer than what is kept of it.

    Args:
        squares: `[rows, places]`.
    """
    count = min(NEAREST, len(places))
    nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
    values = np.concatenate([best[rows], np.take_along_axis(squares, nearest, axis=1)], axis=1)
    order = np.argsort(values, axis=1, kind="stable")[:, :NEAREST]
    best[rows] = np.take_along_axis(values, order, axis=1)
    place[rows] = np.take_along_axis(np.concatenate([place[rows], places[nearest]], axis=1), order, axis=1)


def views(image: Image.Image) -> NDArray[np.float32]:
    """What the second look compares: the image whole, and without the outermost pixels of some sides, `[16, 384]`.

    A row is luma at 16 x 16 and chroma at 8 x 8 pixels, as JPEG keeps less of it, divided so that the distance of two
    rows is the root of the mean squares of both.
    """
    scale = max(1.0, max(image.size) / _VIEWED)
    size = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    image = image.resize(size, _BILINEAR, reducing_gap=2.0).convert("YCbCr")
    rows = []
    for left, upper, right, lower in itertools.product((0, 1), repeat=4):
        box = (left, upper, max(left + 1, image.width - right), max(upper + 1, image.height - lower))
        view = image.crop(box)
        luma = np.asarray(view.getchannel(0).resize((16, 16), _BILINEAR), dtype=np.float32)
        chroma = np.asarray(view.resize((8, 8), _BILINEAR), dtype=np.float32)[..., 1:]
        rows.append(np.concatenate([luma.ravel() / math.sqrt(luma.size), chroma.ravel() / math.sqrt(chroma.size)]))
    return np.stack(rows)


def same_picture(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    """The distance of two images by their `views`, in grey levels of 255; None where they are different pictures."""
    whole = float(np.linalg.norm(first[0] - second[0]))
    if whole <= np.clip(SHARE * min(_contrast(first[0]), _contrast(second[0])), *WHOLE):
        return whole
    cropped = float(np.linalg.norm(first[:, None] - second[None], axis=-1).min())
    return cropped if cropped <= CROPPED else None


def _contrast(view: NDArray[np.float32]) -> float:
    """How far its pixels are from their mean colour: the distance to a plain image."""
    luma, chroma = view[:_LUMA], view[_LUMA:].reshape(-1, 2)
    return float(np.sqrt(((luma - luma.mean()) ** 2).sum() + ((chroma - chroma.mean(axis=0)) ** 2).sum()))
