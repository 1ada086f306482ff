from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vrray.data.rows import Row, Rows, lengths_of, write_order, write_rows

ROWS = [
    Row("a", (5, 6, 7, 8), (False, True, False, True), ("x.png",)),
    Row("b", (1, 2), (True, True), ()),
    Row("c", (9, 9, 9, 4, 3), (False, False, False, True, True), ("y.png", "x.png")),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    assert list(Rows(tmp_path)) == ROWS
    assert Rows(tmp_path)[1:] == ROWS[1:]
    assert Rows(tmp_path)[-1] == ROWS[-1]


def test_no_row_can_be_written(tmp_path: Path) -> None:
    write_rows(tmp_path, [])
    assert list(Rows(tmp_path)) == []


def test_rows_beyond_one_batch(tmp_path: Path) -> None:
    many = [Row(str(number), (number, 1), (False, True), ()) for number in range(5000)]
    write_rows(tmp_path, many)
    rows = Rows(tmp_path)
    assert [rows[place].id for place in (0, 2047, 2048, 4999)] == ["0", "2047", "2048", "4999"]
    with pytest.raises(IndexError):
        rows[5000]


def test_an_order_leaves_out_and_repeats(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    write_order(tmp_path, np.array([2, 0, 2]))
    rows = Rows(tmp_path)
    assert [row.id for row in rows] == ["c", "a", "c"]
    assert rows.lengths.tolist() == [5, 4, 5] == lengths_of(list(rows)).tolist()


def test_supervised_tokens_and_the_prompt() -> None:
    assert ROWS[1].supervised_tokens == 1  # nothing predicts the first token
    assert ROWS[2].prompt == (9, 9, 9)


def test_images_come_in_the_order_of_training(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    assert Rows(tmp_path).images() == ["x.png", "y.png"]
    write_order(tmp_path, np.array([2, 0]))
    assert Rows(tmp_path).images() == ["y.png", "x.png"]
