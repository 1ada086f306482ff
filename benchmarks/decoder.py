"""How much faster a decoder prefills and decodes when layers are removed, alternating in one run.

python -m benchmarks.decoder [--models smol proportioned] [--removed 0.125 0.25 0.5] [--rounds 7] [--prompt 256]
    [--tokens 16] [--precision auto] [--threads 1]

The decoder alone: token embeddings, decoder layers, final norm; no vision tower and no language-model head. Removed
layers are spread evenly; all variants share the weights of one model. In each round every variant reads the prompt
(prefill) and then continues it token by token with the cache (decode). Prints Markdown: medians over the rounds with
their range, and ratios to the whole decoder taken round by round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import proportioned_decoder
from vrray.models.loading import decoder_layers, load_model, resolve_model
from vrray.pruning import remove_layers
from vrray.region import Region, fraction_of
from vrray.sweep.prepare import resolve_precision
from vrray.variant import share_tensors

GOAL = 0.9  # of L / (L - k), when k of L layers are removed
WARM_UP = 2  # tokens


@dataclass
class Variant:
    """A decoder with layers removed, and the seconds that it took: for the prompt, and for a token after it."""

    removed: int
    layers: int
    decoder: Any
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("smol", "proportioned"), default=["smol", "proportioned"])
    parser.add_argument("--removed", nargs="+", type=float, default=[0.125, 0.25, 0.5], help="shares of the depth")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that are decoded")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; several wait for each other on a busy one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    precision = resolve_precision(options.precision, gpu=torch.cuda.is_available())
    load = os.getloadavg()[0]
    print(
        f"{options.rounds} rounds, batch 1, {options.prompt} tokens read, {options.tokens} decoded, {precision}, "
        f"CPU threads: {torch.get_num_threads()}, load {load:.1f} before the run"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model = _model(name, Path(folder), torch.bfloat16 if precision == "bf16" else torch.float32)
            variants = _variants(model, options.removed)
            for _ in range(options.rounds):
                for variant in variants:
                    _measure(variant, options.prompt, options.tokens)
            print(f"\n### {name}, {variants[0].layers} layers\n")
            _print(variants)


def _model(name: str, folder: Path, dtype: torch.dtype) -> Any:
    path = resolve_model("smol") if name == "smol" else proportioned_decoder(folder / name, 1024, vocabulary=16_384)
    model = load_model(path, dtype)
    return model.to("cuda") if torch.cuda.is_available() else model


def _variants(model: Any, shares: Sequence[float]) -> list[Variant]:
    depth = len(decoder_layers(model))
    variants = []
    for count in [0, *(fraction_of(depth, share) for share in shares)]:
        twin = share_tensors(model)
        remove_layers(twin, [place * depth // count for place in range(count)], Region.none(depth))
        variants.append(Variant(count, depth - count, twin.get_decoder()))
    return variants


@torch.inference_mode()
def _measure(variant: Variant, prompt: int, tokens: int) -> None:
    decoder = variant.decoder
    device = next(decoder.parameters()).device
    ids = torch.arange(3, 3 + prompt, device=device).unsqueeze(0)
    began = _now()
    cache = decoder(input_ids=ids, use_cache=True).past_key_values
    variant.prefill.append(_now() - began)
    for number in range(WARM_UP + tokens):
        if number == WARM_UP:
            began = _now()
        decoder(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    variant.decode.append((_now() - began) / tokens)


def _now() -> float:
    """Seconds, once the device has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _print(variants: Sequence[Variant]) -> None:
    _row("removed", "prefill, ms", "range", "decode, ms/token", "range")
    _row(*["---"] * 5)
    for variant in variants:
        _row(str(variant.removed), *_spread(variant.prefill, 1e3), *_spread(variant.decode, 1e3))
    print()
    _row(
        "removed", "L / (L - k)", "prefill, times as fast", "range", "decode, times as fast", "range", f"{GOAL} reached"
    )
    _row(*["---"] * 7)
    whole = variants[0]
    for variant in variants[1:]:
        expected = whole.layers / variant.layers
        ratios = [
            [one / other for one, other in zip(*pair, strict=True)]
            for pair in ((whole.prefill, variant.prefill), (whole.decode, variant.decode))
        ]
        reached = all(statistics.median(values) >= GOAL * expected for values in ratios)
        cells = [cell for values in ratios for cell in _spread(values)]
        _row(str(variant.removed), f"{expected:.2f}", *cells, "yes" if reached else "no")


def _spread(values: Sequence[float], unit: float = 1) -> tuple[str, str]:
    scaled = [unit * value for value in values]
    return f"{statistics.median(scaled):.2f}", f"{min(scaled):.2f}-{max(scaled):.2f}"


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
