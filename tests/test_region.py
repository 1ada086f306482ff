"""Regions and placements: sizes and spacing for every depth and count, the published lists, every refusal."""

import dataclasses
import itertools
import json

import pytest

from vrray.errors import RegionError
from vrray.region import PLACEMENTS, Region, fraction_of, place

DEPTHS = range(1, 49)
COUNTED = ("uniform", "bottom", "lower-middle", "upper-middle", "top", "hybrid", "random")
BLOCKS = ("bottom", "lower-middle", "upper-middle", "top")


def depths_and_counts():
    return ((depth, k) for depth in DEPTHS for k in range(1, depth + 1))


def refused(*parts):
    """Expect a RegionError whose message holds every one of `parts`."""
    return pytest.raises(RegionError, match="".join(f"(?=.*{part})" for part in parts))


def test_placements_are_the_documented_names():
    assert PLACEMENTS == (
        "all", "uniform", "paper", "bottom", "lower-middle", "upper-middle", "top", "hybrid", "random",
    )  # fmt: skip


@pytest.mark.parametrize("placement", COUNTED)
def test_region_has_k_sorted_distinct_layers_in_range(placement):
    for depth, k in depths_and_counts():
        region = place(placement, depth, k)
        assert len(region) == k
        assert region.layers == tuple(sorted(set(region.layers)))
        assert region.layers[0] >= 0 and region.layers[-1] < depth
        assert (region.depth, region.placement) == (depth, placement)


def test_all_takes_every_layer_whatever_the_count():
    for depth, k in depths_and_counts():
        assert place("all", depth, k).layers == tuple(range(depth))
    assert place("all", 8, 99).layers == tuple(range(8))


def test_uniform_starts_at_the_first_layer_with_even_gaps():
    for depth, k in depths_and_counts():
        layers = place("uniform", depth, k).layers
        gaps = [after - before for before, after in zip(layers, (*layers[1:], depth), strict=True)]
        assert layers[0] == 0
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("placement", BLOCKS)
def test_blocks_are_consecutive(placement):
    for depth, k in depths_and_counts():
        layers = place(placement, depth, k).layers
        assert layers == tuple(range(layers[0], layers[0] + k))


def test_blocks_rise_from_the_first_layer_to_the_last_and_overlap_only_when_they_must():
    for depth, k in depths_and_counts():
        starts = [place(placement, depth, k).layers[0] for placement in BLOCKS]
        assert starts == [j * (depth - k) // 3 for j in range(4)]
        assert starts[0] == 0 and starts[-1] + k == depth
        if 4 * k <= depth:
            assert all(after - before >= k for before, after in itertools.pairwise(starts))


def test_hybrid_is_bottom_and_top_with_the_odd_layer_below():
    for depth, k in depths_and_counts():
        below, above = -(-k // 2), k // 2
        expected = [*range(below), *range(depth - above, depth)]
        assert list(place("hybrid", depth, k)) == expected


@pytest.mark.parametrize(
    ("placement", "depth", "layers", "expected"),
    [
        ("paper", 32, 8, (0, 4, 8, 12, 18, 22, 26, 30)),
        ("uniform", 32, 8, (0, 4, 8, 12, 16, 20, 24, 28)),
        ("uniform", 30, 8, (0, 3, 7, 11, 15, 18, 22, 26)),
        ("uniform", 40, 9, (0, 4, 8, 13, 17, 22, 26, 31, 35)),
        ("bottom", 32, 8, tuple(range(0, 8))),
        ("lower-middle", 32, 8, tuple(range(8, 16))),
        ("upper-middle", 32, 8, tuple(range(16, 24))),
        ("top", 32, 8, tuple(range(24, 32))),
        ("hybrid", 32, 8, (0, 1, 2, 3, 28, 29, 30, 31)),
        ("hybrid", 10, 3, (0, 1, 9)),
        ("uniform", 1, 1, (0,)),
    ],
)
def test_exact_layers(placement, depth, layers, expected):
    assert place(placement, depth, layers).layers == expected


def test_the_paper_list_is_the_default_count_of_32_layers():
    assert place("paper", 32).layers == place("paper", 32, 8).layers


def test_random_is_pinned_across_processes_and_versions():
    # str hashes change with every process, so a draw that depended on them could not equal these.
    assert place("random", 32, 8, seed=3).layers == (2, 10, 13, 15, 16, 18, 21, 27)
    assert place("random", 32, 8).layers == (2, 7, 12, 13, 19, 20, 27, 31)


def test_random_differs_by_seed_and_reaches_every_layer():
    regions = [place("random", 24, 6, seed=seed) for seed in range(50)]
    assert len({region.layers for region in regions}) == 50
    assert {layer for region in regions for layer in region} == set(range(24))


def test_only_random_keeps_the_seed():
    assert place("random", 8, 2, seed=5).seed == 5
    assert place("uniform", 8, 2, seed=5) == place("uniform", 8, 2, seed=6)


@pytest.mark.parametrize(
    ("layers", "depth", "k"),
    [
        (1, 32, 1), (1.0, 32, 32), (32, 32, 32),
        (0.25, 32, 8), (0.25, 30, 8), (0.25, 29, 7), (0.25, 2, 1), (0.25, 1, 1),
        (0.5, 5, 3), (0.29, 50, 15), (0.001, 32, 1), (1e-300, 32, 1), (1 / 3, 30, 10), (8 / 30, 30, 8),
    ],
)  # fmt: skip
def test_int_is_a_count_and_float_a_fraction_rounded_half_up(layers, depth, k):
    assert len(place("uniform", depth, layers)) == k


@pytest.mark.parametrize(
    ("depth", "fraction", "count"),
    [(30, 0.35, 11), (6, 0.25, 2), (50, 0.29, 15), (30, 1 / 3, 10), (6, 0.0, 0), (6, 0.08, 0), (6, 1.0, 6)],
)
def test_a_fraction_is_rounded_half_up(depth, fraction, count):
    assert fraction_of(depth, fraction) == count


@pytest.mark.parametrize(
    ("written", "name"),
    [("Uniform", "uniform"), ("LOWER_MIDDLE", "lower-middle"), (" upper_middle ", "upper-middle")],
)
def test_names_ignore_case_and_take_underscores(written, name):
    assert place(written, 32, 8) == place(name, 32, 8)


@pytest.mark.parametrize("written", ["0,4,8", " 0, 4 ,8 ", "8,0,4"])
def test_explicit_list_ignores_the_count(written):
    assert place(written, 12, 99) == Region((0, 4, 8), 12, "explicit")


def test_explicit_list_of_one():
    assert place("7", 8).layers == (7,)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("0,4,12", ("layer 12 is out of range", "12 layers", "0 to 11", "remove it")),
        ("-1,4", ("layer -1 is out of range", "0 to 11")),
        ("4,0,4", ("layer 4 is listed twice", "once")),
        ("0,x,8", ("'x' in '0,x,8' is not a layer index", "'0,4,8'")),
        ("0,4,", ("'' in '0,4,' is not a layer index",)),
        (",", ("'' in ',' is not a layer index",)),
        ("0-7", ("'0-7' in '0-7' is not a layer index",)),
        ("0 4 8", ("'0 4 8' in",)),
        ("1_0,2", ("'1_0' in",)),
        ("٣,2", ("'٣' in",)),
        ("+1", (r"'\+1' in",)),
        pytest.param("9" * 5000, ("is not a layer index",), id="huge"),
        ("uniform,top", ("'uniform' in",)),
    ],
)
def test_malformed_lists_are_refused(written, parts):
    with refused(*parts):
        place(written, 12)


@pytest.mark.parametrize("layers", [0, -3, 13, 0.0, -0.5, 1.5, 8.0, float("nan"), float("inf"), True, "8", None])
def test_counts_that_do_not_fit_are_refused_with_figures(layers):
    with refused(f"layers={layers!r} does not fit", "12 layers", "count from 1 to 12", "1.0 is every layer"):
        place("uniform", 12, layers)


@pytest.mark.parametrize(("depth", "k"), [(40, 9), (32, 4), (32, 16), (24, 8)])
def test_paper_is_refused_where_nothing_is_published(depth, k):
    with refused("published for 8 of 32 layers", f"not for {k} of {depth}", "use placement 'uniform'"):
        place("paper", depth, k)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("unifrom", "uniform"), ("uniform-8", "uniform"), ("lower middle", "lower-middle"), ("Bottum", "bottom")],
)
def test_unknown_names_are_refused_with_the_nearest(written, nearest):
    with refused(f"unknown placement '{written}'", f"Did you mean '{nearest}'", *PLACEMENTS, "'0,4,8'"):
        place(written, 32, 8)


@pytest.mark.parametrize("written", ["", "xyzzy"])
def test_names_near_to_none_are_refused_without_a_guess(written):
    with refused(f"unknown placement '{written}'", *PLACEMENTS, "^(?!.*Did you mean)"):
        place(written, 32)


def test_placement_must_be_text():
    with refused("must be a name or a list", r"found \[0, 4\]"):
        place([0, 4], 32)


@pytest.mark.parametrize("depth", [0, -1, True, 32.0, "32", None])
def test_depth_is_refused(depth):
    for build in (lambda: place("all", depth), lambda: Region.none(depth), lambda: Region((0,), depth, "top")):
        with refused("depth must be an integer of at least 1", f"found {depth!r}", "layer count"):
            build()


@pytest.mark.parametrize("seed", [None, "3", 1.0, True])
def test_random_needs_an_integer_seed(seed):
    with refused("'random' needs an integer seed", f"found {seed!r}", "set seed"):
        place("random", 32, 8, seed=seed)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (((0, 8, 4), 12, "explicit"), ("not sorted", "4 comes after 8", "ascending")),
        (((0, 4, 4), 12, "explicit"), ("layer 4 is listed twice",)),
        (((0, 12), 12, "explicit"), ("layer 12 is out of range", "0 to 11", "remove it")),
        (((-1, 2), 12, "explicit"), ("layer -1 is out of range",)),
        (((0, True), 12, "explicit"), ("index True is not an integer", "0 to 11")),
        (((0, 1.0), 12, "explicit"), ("index 1.0 is not an integer",)),
        (([0, 1], 12, "explicit"), ("must be a tuple", r"\[0, 1\]")),
        (((), 12, "uniform"), ("placement 'uniform' has no layer", r"Region.none\(12\)")),
        (((1,), 12, "none"), ("placement 'none' tunes no layer, found 1", "use placement 'explicit'")),
        (((0, 1), 3, "all"), ("all 3 layers, found 2", r"place\('all', 3\)")),
        (((0,), 12, "Lower_Middle"), ("lower case with hyphens", "'Lower_Middle'")),
        (((0,), 12, None), ("lower case with hyphens", "found None")),
        (((0,), 12, "bottom", 3), ("'bottom' is not drawn at random", "seed 3", "leave seed at None")),
        (((0,), 12, "random"), ("'random' needs an integer seed", "found None")),
    ],
)
def test_invalid_regions_are_refused(fields, parts):
    with refused(*parts):
        Region(*fields)


def test_region_is_an_immutable_container():
    region = place("0,4,8", 12)
    assert (len(region), list(region), 4 in region, 5 in region) == (3, [0, 4, 8], True, False)
    assert region in {place("0,4,8", 12)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        region.depth = 3


def test_outside_and_fraction_complete_the_region():
    for depth, k in depths_and_counts():
        region = place("uniform", depth, k)
        assert sorted((*region.layers, *region.outside)) == list(range(depth))
        assert region.fraction == k / depth


def test_none_tunes_no_layer():
    region = Region.none(4)
    assert (region.layers, region.outside, region.fraction, region.name) == ((), (0, 1, 2, 3), 0.0, "none")
    assert region.module_paths("model.layers") == ()


@pytest.mark.parametrize(
    ("region", "name"),
    [
        (place("uniform", 32), "uniform-8"),
        (place("upper_middle", 32, 4), "upper-middle-4"),
        (place("all", 32), "all"),
        (Region.none(32), "none"),
        (place("0,4,8", 32), "layers-0-4-8"),
        (place("random", 32, 8, seed=3), "random-8-seed3"),
        (Region((2, 5), 8, "angular-distance"), "angular-distance-2"),
    ],
)
def test_name(region, name):
    assert region.name == name


def test_module_paths_are_full():
    assert place("0,2", 4).module_paths("model.language_model.layers") == (
        "model.language_model.layers.0",
        "model.language_model.layers.2",
    )


@pytest.mark.parametrize("path", ["", "model.layers.", ".layers", "model..layers"])
def test_module_paths_need_a_full_path(path):
    with refused("layers path", "has an empty part", "'model.layers'"):
        place("all", 2).module_paths(path)


def test_json_round_trip():
    for depth, k in depths_and_counts():
        for placement in COUNTED:
            region = place(placement, depth, k, seed=k)
            assert Region.from_json(json.loads(json.dumps(region.to_json()))) == region
    for region in (Region.none(3), place("all", 3), place("0,2", 3), place("paper", 32)):
        assert Region.from_json(json.loads(json.dumps(region.to_json()))) == region


def test_json_fields():
    assert place("bottom", 8, 2).to_json() == {"layers": [0, 1], "depth": 8, "placement": "bottom", "seed": None}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"depht": 8}, (r"unknown region fields \['depht'\]", "layers, depth, placement, seed")),
        ({"layers": "0,1"}, ("'layers' must be a list of integers", "'0,1'")),
        ({"layers": [0, True]}, ("index True is not an integer",)),
        ({"layers": [0, "1"]}, ("index '1' is not an integer",)),
        ({"layers": [0, 8]}, ("layer 8 is out of range",)),
        ({"depth": True}, ("depth must be an integer", "found True")),
        ({"depth": "8"}, ("depth must be an integer", "found '8'")),
        ({"placement": 3}, ("found 3",)),
        ({"seed": 3}, ("'bottom' is not drawn at random",)),
        ({"placement": "random", "seed": True}, ("needs an integer seed", "found True")),
    ],
)
def test_json_of_wrong_fields_is_refused(change, parts):
    with refused(*parts):
        Region.from_json(place("bottom", 8, 2).to_json() | change)


@pytest.mark.parametrize("field", ["layers", "depth", "placement", "seed"])
def test_json_with_a_missing_field_is_refused(field):
    data = place("bottom", 8, 2).to_json()
    del data[field]
    with refused(rf"missing region fields \['{field}'\]", "add them"):
        Region.from_json(data)


@pytest.mark.parametrize("data", [None, [0, 1], "bottom"])
def test_json_that_is_no_object_is_refused(data):
    with refused("must be a JSON object", type(data).__name__):
        Region.from_json(data)
