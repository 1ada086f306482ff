"""Which decoder layers are tuned: the region, and the named placements that choose one."""

import difflib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import TypeGuard

from vrray.errors import RegionError

PLACEMENTS: tuple[str, ...] = (
    "all",
    "uniform",
    "paper",
    "bottom",
    "lower-middle",
    "upper-middle",
    "top",
    "hybrid",
    "random",
)


@dataclass(frozen=True)
class Region:
    """The decoder layers that are tuned, and so are never pruned.

    Like any empty container, the region of `Region.none` is falsy: compare with `is None` where one is optional.

    Attributes:
        layers: zero-based indices of the decoder layers, ascending, each once.
        depth: number of layers of the decoder.
        placement: how the layers were chosen: one of `PLACEMENTS`, "explicit", "none", or by a layer score, such as
            "by-angular" or "by-angular-spread".
        seed: the seed of placement "random"; None for every other placement.

    Raises:
        RegionError: the fields contradict each other or the decoder; the message names the layer and the numbers.
    """

    layers: tuple[int, ...]
    depth: int
    placement: str
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_depth(self.depth)
        _check_placement(self.placement)
        _check_layers(self.layers, self.depth)
        _check_size(self.layers, self.depth, self.placement)
        _check_seed(self.seed, self.placement)

    @classmethod
    def none(cls, depth: int) -> "Region":
        """The empty region: no decoder layer is tuned, only the projector.

        Raises:
            RegionError: `depth` is not an integer of at least 1.
        """
        return cls((), depth, "none")

    @classmethod
    def from_json(cls, data: object) -> "Region":
        """Rebuild what `to_json` gave.

        Raises:
            RegionError: a field is unknown, missing or of the wrong type, or the region is invalid.
        """
        if not isinstance(data, dict):
            raise RegionError(f"a region must be a JSON object, found {type(data).__name__}: {data!r}")
        fields = ("layers", "depth", "placement", "seed")
        if unknown := [key for key in data if key not in fields]:
            raise RegionError(f"unknown region fields {unknown}; remove them, the fields are {', '.join(fields)}")
        if missing := [key for key in fields if key not in data]:
            raise RegionError(f"missing region fields {missing}; add them, the fields are {', '.join(fields)}")
        layers = data["layers"]
        if not isinstance(layers, list):
            raise RegionError(f"region field 'layers' must be a list of integers, found {layers!r}")
        return cls(tuple(layers), data["depth"], data["placement"], data["seed"])

    def to_json(self) -> dict[str, object]:
        """The region as values that `json.dumps` takes; `from_json` reads them back."""
        return {"layers": list(self.layers), "depth": self.depth, "placement": self.placement, "seed": self.seed}

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    @property
    def outside(self) -> tuple[int, ...]:
        """The layers that are not tuned, ascending: those that pruning may remove."""
        inside = set(self.layers)
        return tuple(layer for layer in range(self.depth) if layer not in inside)

    @property
    def fraction(self) -> float:
        """Share of the decoder's layers that are tuned, 0 to 1."""
        return len(self.layers) / self.depth

    @property
    def name(self) -> str:
        """A name for tables and file names, such as "uniform-8", "random-8-seed3", "layers-0-4-8", "all" or "none"."""
        if self.placement in ("all", "none"):
            return self.placement
        if self.placement == "explicit":
            return "-".join(["layers", *map(str, self.layers)])
        name = f"{self.placement}-{len(self.layers)}"
        return name if self.seed is None else f"{name}-seed{self.seed}"

    def module_paths(self, layers_path: str) -> tuple[str, ...]:
        """Full dotted paths of the tuned layers, so that no layer of a vision tower is meant by the same index.

        Args:
            layers_path: where the decoder's layer list is in the model, such as "model.language_model.layers".

        Raises:
            RegionError: `layers_path` is empty or has an empty part.
        """
        if not all(layers_path.split(".")):
            raise RegionError(f"layers path {layers_path!r} has an empty part; use a full path such as 'model.layers'")
        return tuple(f"{layers_path}.{layer}" for layer in self.layers)


def place(
    placement: str,
    depth: int,
    layers: int | float = 0.25,
    seed: int = 0,
    scores: Mapping[str, Sequence[float]] | None = None,
) -> Region:
    """Choose the region of a decoder by a named placement, a layer score or an explicit list.

    The placements are those that the paper compares (arXiv 2412.12785, "where" ablation), and seeded chance.

    Args:
        placement: a name of `PLACEMENTS`, in either case and with underscores or hyphens; a list such as "0,4,8";
            "by:angular" for the layers with the highest values of a score; "by:angular,spread" for the highest one in
            each of as many equal stretches of the depth.
        depth: number of layers of the decoder.
        layers: an int is a count (1 is one layer), a float a fraction (1.0 is every layer), rounded half up to at
            least one layer. Placement "all" and explicit lists ignore it.
        seed: what placement "random" draws with; the others ignore it.
        scores: the values of the layer scores that "by:" may name, a value a layer.

    Raises:
        RegionError: the placement is unknown, the list is malformed, the count does not fit the decoder, or the
            score is not there.
    """
    _check_depth(depth)
    if not isinstance(placement, str):
        raise RegionError(f"placement must be a name or a list such as '0,4,8', found {placement!r}")
    by = by_score(placement)
    if by is not None:
        score, spread = by
        values = (scores or {}).get(score)
        if values is None:
            raise RegionError(f"placement {placement!r} needs the layer score {score!r} to be measured first")
        return Region(_highest(values, _count(layers, depth), spread), depth, _by_name(score, spread))
    if _is_list(placement):
        return Region(parse_layers(placement), depth, "explicit")
    name = _known_name(placement)
    k = depth if name == "all" else _count(layers, depth)
    return Region(_CHOICES[name](depth, k, seed), depth, name, seed if name == "random" else None)


def by_score(placement: str) -> tuple[str, bool] | None:
    """The score that a placement such as "by:bi" or "by:bi,spread" names, and whether it is spread; else None.

    Raises:
        RegionError: something else than "spread" follows the score.
    """
    found = re.fullmatch(r"by:([a-z-]*)(?:,(.*))?", placement.strip().lower().replace("_", "-"))
    if found is None:
        return None
    if found[2] not in (None, "spread"):
        raise RegionError(f"placement {placement!r}: write by:{found[1]} or by:{found[1]},spread")
    return found[1], found[2] is not None


def draw(layers: Sequence[int], seed: str) -> list[int]:
    """The layers in random order."""
    generator = random.Random(seed)
    # Python keeps random() the same from version to version, which it does not promise for sample().
    return sorted(layers, key=lambda _layer: generator.random())


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers of a list such as "0,4,8", ascending.

    Raises:
        RegionError: an item is not a layer index.
    """
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not re.fullmatch(r"-?[0-9]{1,9}", item):
            raise RegionError(f"{item!r} in {text!r} is not a layer index; write a list such as '0,4,8'")
    return tuple(sorted(map(int, items)))


def fraction_of(depth: int, fraction: float) -> int:
    """How many layers a fraction of a decoder is: rounded half up, as one does by hand (0.35 of 30 layers is 11)."""
    # Decimal, because 0.29 * 50 in floats is below the 14.5 that the user wrote.
    return int((Decimal(str(float(fraction))) * depth).to_integral_value(ROUND_HALF_UP))


def _is_int(value: object) -> TypeGuard[int]:
    # bool is a subclass of int, and JSON's true must not become layer 1.
    return isinstance(value, int) and not isinstance(value, bool)


def _check_depth(depth: object) -> None:
    if not _is_int(depth) or depth < 1:
        raise RegionError(f"depth must be an integer of at least 1, found {depth!r}; give the decoder's layer count")


def _check_placement(placement: object) -> None:
    if not isinstance(placement, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", placement):
        raise RegionError(f"a region's placement must be a name in lower case with hyphens, found {placement!r}")


def _check_layers(layers: object, depth: int) -> None:
    if not isinstance(layers, tuple):
        raise RegionError(f"a region's layers must be a tuple of integers, found {layers!r}")
    for layer in layers:
        if not _is_int(layer):
            raise RegionError(f"layer index {layer!r} is not an integer; give indices from 0 to {depth - 1}")
        if not 0 <= layer < depth:
            raise RegionError(
                f"layer {layer} is out of range: a decoder of {depth} layers has layers 0 to {depth - 1}; "
                "remove it, or give the depth of the decoder that was meant"
            )
    for before, after in itertools.pairwise(layers):
        if after < before:
            raise RegionError(f"layers are not sorted: {after} comes after {before}; list them in ascending order")
        if after == before:
            raise RegionError(f"layer {after} is listed twice; list each layer once")


def _check_size(layers: tuple[int, ...], depth: int, placement: str) -> None:
    if placement == "none" and layers:
        raise RegionError(f"placement 'none' tunes no layer, found {len(layers)}: {layers}; use placement 'explicit'")
    if placement != "none" and not layers:
        raise RegionError(f"placement '{placement}' has no layer; to train only the projector use Region.none({depth})")
    if placement == "all" and len(layers) != depth:
        raise RegionError(f"placement 'all' tunes all {depth} layers, found {len(layers)}; use place('all', {depth})")


def _check_seed(seed: object, placement: str) -> None:
    if placement == "random" and not _is_int(seed):
        raise RegionError(f"placement 'random' needs an integer seed, found {seed!r}; set seed, for example to 0")
    if placement != "random" and seed is not None:
        raise RegionError(f"placement '{placement}' is not drawn at random, found seed {seed!r}; leave seed at None")


def _is_list(placement: str) -> bool:
    return "," in placement or re.match(r"\s*[-+]?[0-9]", placement) is not None


def _known_name(placement: str) -> str:
    name = placement.strip().lower().replace("_", "-")
    if name in PLACEMENTS:
        return name
    nearest = difflib.get_close_matches(name, PLACEMENTS, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise RegionError(
        f"unknown placement {placement!r}.{hint} Use one of {', '.join(PLACEMENTS)}, a score as in by:angular, or a "
        "list such as '0,4,8'"
    )


def _count(layers: object, depth: int) -> int:
    if _is_int(layers) and 1 <= layers <= depth:
        return layers
    if isinstance(layers, float) and 0 < layers <= 1:
        return max(1, fraction_of(depth, layers))
    raise RegionError(
        f"layers={layers!r} does not fit a decoder of {depth} layers; set layers to a count from 1 to {depth} "
        "(an int: 1 is one layer) or to a fraction above 0 and at most 1.0 (a float: 1.0 is every layer)"
    )


def _uniform(depth: int, k: int, _seed: int) -> tuple[int, ...]:
    return tuple(i * depth // k for i in range(k))


def _paper(depth: int, k: int, _seed: int) -> tuple[int, ...]:
    if (depth, k) not in _PUBLISHED:
        published = "; ".join(f"{count} of {total} layers" for total, count in _PUBLISHED)
        raise RegionError(
            f"placement 'paper' is published for {published}, not for {k} of {depth}; use placement 'uniform' instead"
        )
    return _PUBLISHED[depth, k]


def _block(j: int) -> Callable[[int, int, int], tuple[int, ...]]:
    """The j-th of four blocks of k layers with starts spread from bottom to top; they overlap when 4k > depth."""

    def choose(depth: int, k: int, _seed: int) -> tuple[int, ...]:
        start = j * (depth - k) // 3
        return tuple(range(start, start + k))

    return choose


def _hybrid(depth: int, k: int, _seed: int) -> tuple[int, ...]:
    bottom = (k + 1) // 2
    return (*range(bottom), *range(depth - (k - bottom), depth))


def _random(depth: int, k: int, seed: int) -> tuple[int, ...]:
    return tuple(sorted(draw(range(depth), f"vrray random placement, seed {seed}, depth {depth}, k {k}")[:k]))


def _highest(values: Sequence[float], k: int, spread: bool) -> tuple[int, ...]:
    """The k layers of the highest values, of equals the lower ones; spread: one of each of k equal stretches."""
    depth = len(values)
    bounds = [i * depth // k for i in range(k + 1)] if spread else [0, depth]
    stretches = [range(begin, end) for begin, end in itertools.pairwise(bounds)]
    chosen = [
        layer
        for stretch in stretches
        for layer in sorted(stretch, key=lambda layer: (-values[layer], layer))[: 1 if spread else k]
    ]
    return tuple(sorted(chosen))


def _by_name(score: str, spread: bool) -> str:
    return f"by-{score}-spread" if spread else f"by-{score}"


# (depth, k) -> the sparse, uniform layers that the paper prints for its 32-layer decoders.
_PUBLISHED: dict[tuple[int, int], tuple[int, ...]] = {(32, 8): (0, 4, 8, 12, 18, 22, 26, 30)}

_CHOICES: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "all": _uniform,
    "uniform": _uniform,
    "paper": _paper,
    "bottom": _block(0),
    "lower-middle": _block(1),
    "upper-middle": _block(2),
    "top": _block(3),
    "hybrid": _hybrid,
    "random": _random,
}
