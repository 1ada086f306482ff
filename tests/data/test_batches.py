"""Batches: an order that workers and micro-batches do not change, fair shares, and what the model is fed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from vrray.data.batches import collate, global_batches, rank_share
from vrray.data.rows import Row


def order(rows: int, batch: int, steps: int, seed: int = 0) -> list[int]:
    batches = list(global_batches([7] * rows, batch, steps, seed, group_by_length=False))
    assert [len(part) for part in batches] == [batch] * steps
    return [row for part in batches for row in part]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 12, 20, 60])
def test_the_order_does_not_depend_on_the_size_of_a_batch(batch: int) -> None:
    assert order(20, batch, 60 // batch) == order(20, 1, 60)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    rows = order(20, 6, 10)
    epochs = [rows[start : start + 20] for start in range(0, 60, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(20))]}) == 4


def test_the_order_depends_on_the_seed_only() -> None:
    assert order(20, 5, 8, seed=3) == order(20, 5, 8, seed=3)
    assert order(20, 5, 8, seed=3) != order(20, 5, 8, seed=4)


@pytest.mark.parametrize("grouped", [False, True])
def test_fewer_rows_than_a_batch(grouped: bool) -> None:
    (batch,) = global_batches([4, 9, 2], 6, 1, 0, group_by_length=grouped)
    assert sorted(batch) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_no_rows_make_no_batch(grouped: bool) -> None:
    with pytest.raises(ValueError, match="no rows to make batches of"):
        next(global_batches([], 4, 1, 0, group_by_length=grouped))


def instructions(rows: int) -> list[int]:
    """Lengths as instruction data have them: most of some hundred tokens, some of a few thousand."""
    return (20 + np.random.default_rng(7).lognormal(5, 0.8, rows)).astype(int).tolist()


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of positions that are padding, when a batch is padded to its longest row."""
    slots = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / slots


@pytest.mark.parametrize(("rows", "batch"), [(4096, 128), (4096, 16), (300, 16)])
def test_grouping_takes_most_of_the_padding_away(rows: int, batch: int) -> None:
    lengths = instructions(rows)
    grouped, plain = (
        padding(lengths, list(global_batches(lengths, batch, rows // batch, 0, group_by_length=how)))
        for how in (True, False)
    )
    assert plain > 0.5
    assert grouped < plain / 3


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    [(640, 16, 80), (2000, 16, 250), (100, 16, 25), (50, 8, 25), (20, 6, 10), (3, 8, 3)],
)
def test_grouped_epochs_hold_every_row_once(rows: int, batch: int, steps: int) -> None:
    taken = np.zeros(rows, dtype=int)
    for part in global_batches(instructions(rows), batch, steps, 0):
        assert len(part) == batch
        np.add.at(taken, part, 1)
        assert taken.max() - taken.min() <= 1  # no row comes again before all others have come
    assert taken.sum() == batch * steps


def test_grouped_batches_come_in_random_order() -> None:
    lengths = instructions(512)
    longest = [max(lengths[row] for row in batch) for batch in global_batches(lengths, 16, 32, 0)]
    rises = sum(after > before for before, after in pairwise(longest))
    assert 8 < rises < 24  # in ascending order, it would be 31


def test_the_grouped_order_is_repeatable_and_depends_on_the_seed() -> None:
    lengths = instructions(100)
    first, again, other = (list(global_batches(lengths, 8, 40, seed)) for seed in (3, 3, 4))
    assert again == first != other


def test_rows_of_one_length_are_mixed_anew_in_every_epoch() -> None:
    batches = list(global_batches([9] * 64, 8, 16, 0))
    assert len({frozenset(batch) for batch in batches}) == 16


LENGTHS = [3, 50, 7, 7, 21, 9, 30, 4, 12, 18, 5, 40]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_shares_are_disjoint_equal_and_cover_the_batch(world: int) -> None:
    batch = [11, 2, 5, 0, 9, 1, 8, 3, 10, 4, 6, 7]
    shares = [rank_share(batch, LENGTHS, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {12 // world}
    assert sorted(row for share in shares for row in share) == sorted(batch)


def test_shares_carry_about_the_same_tokens() -> None:
    tokens = [sum(LENGTHS[row] for row in rank_share(range(12), LENGTHS, rank, 2)) for rank in range(2)]
    assert abs(tokens[0] - tokens[1]) <= 12  # dealing the sorted rows out in turn would give 117 and 89


def test_a_row_that_is_twice_in_a_batch_is_trained_twice() -> None:
    shares = [rank_share([1, 1, 0, 2], LENGTHS, rank, 2) for rank in range(2)]
    assert sorted(row for share in shares for row in share) == [0, 1, 1, 2]


class FewFeatures(dict[str, torch.Tensor]):
    shape = (2, 3)

    def stack(self, images: Sequence[str]) -> torch.Tensor:
        return torch.stack([self[image] for image in images])


FEATURES: Any = FewFeatures(a=torch.full((2, 3), 1.0).half(), b=torch.full((2, 3), 2.0).half())
SEEN = Row("seen", (9, 9, 5, 6, 7, 2), (False, False, False, True, False, True), ("b",))
TEXT = Row("text", (1, 4, 8), (False, True, True), ())
OTHER = Row("other", (9, 9, 3, 2), (False, False, True, True), ("a",))


def test_collate_by_hand() -> None:
    batch = collate([SEEN, TEXT, OTHER], FEATURES, 0, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[9, 9, 5, 6, 7, 2], [1, 4, 8, 0, 0, 0], [9, 9, 3, 2, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1] * 6, [1] * 3 + [0] * 3, [1] * 4 + [0] * 2]
    # The position before a supervised token predicts it: rows start at 0, 6 and 12.
    assert batch.positions.tolist() == [2, 4, 6, 7, 13, 14]
    assert batch.targets.tolist() == [6, 2, 4, 8, 3, 2]
    assert batch.features[:, 0, 0].tolist() == [2.0, 1.0]
    assert batch.features.shape == (2, 2, 3)
    assert batch.position_ids is None


def test_packing_by_hand() -> None:
    batch = collate([SEEN, TEXT, OTHER], FEATURES, 0, torch.device("cpu"), packing=True)
    assert batch.input_ids.tolist() == [[9, 9, 5, 6, 7, 2, 1, 4, 8, 9, 9, 3, 2]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.attention_mask is None
    # Rows start at 0, 6 and 9; what is predicted is the same as with padding.
    assert batch.positions.tolist() == [2, 4, 6, 7, 10, 11]
    assert batch.targets.tolist() == [6, 2, 4, 8, 3, 2]
    assert batch.features[:, 0, 0].tolist() == [2.0, 1.0]


def test_the_first_token_of_a_packed_row_is_not_predicted_by_the_row_before() -> None:
    caption = Row("caption", (5, 6), (True, True), ())
    batch = collate([caption, caption], FEATURES, 0, torch.device("cpu"), packing=True)
    assert (batch.positions.tolist(), batch.targets.tolist()) == ([0, 2], [6, 6])


def test_padding_is_told_by_length_not_by_id() -> None:
    batch = collate([SEEN, TEXT], FEATURES, 2, torch.device("cpu"))
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [6, 3]
    assert batch.input_ids[1].tolist() == [1, 4, 8, 2, 2, 2]
    assert batch.targets.tolist() == [6, 2, 4, 8]


def test_text_rows_alone_keep_the_shape_of_features() -> None:
    batch = collate([TEXT], FEATURES, 0, torch.device("cpu"))
    assert batch.features.shape == (0, 2, 3)


def test_a_first_token_cannot_be_predicted() -> None:
    row = Row("caption", (5, 6), (True, True), ())
    batch = collate([row], FEATURES, 0, torch.device("cpu"))
    assert (batch.positions.tolist(), batch.targets.tolist()) == ([0], [6])
    assert row.supervised_tokens == 1
