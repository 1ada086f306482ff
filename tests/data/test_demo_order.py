"""Draws that stay as they are, and orders whose every prefix is in proportion."""

from vrray.data.demo_order import in_rounds, interleaved, seeded, shuffled


def test_a_draw_depends_on_its_name_alone() -> None:
    assert shuffled(range(20), "a") == shuffled(range(20), "a") != shuffled(range(20), "b")
    assert sorted(shuffled(range(20), "a")) == list(range(20))
    assert seeded("a").random() == seeded("a").random() != seeded("b").random()


def test_a_draw_stays_what_it_was() -> None:
    assert shuffled("abcdefgh", "train") == list("fdgchabe")


def test_every_prefix_is_in_proportion() -> None:
    mixed = interleaved("a" * 60, "b" * 30, "c" * 10)
    for length in (10, 20, 50, 100):
        for letter, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            assert abs(mixed[:length].count(letter) - share * length) <= 1


def test_rounds_hold_all_items_in_new_orders() -> None:
    items = list(in_rounds("abcdefgh", 5, "letters"))
    rounds = [tuple(items[start : start + 8]) for start in range(0, 40, 8)]
    assert all(sorted(held) == list("abcdefgh") for held in rounds)
    assert len(set(rounds)) == 5
