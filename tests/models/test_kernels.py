"""Faster kernels: taken where they are, refused with what was found where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from vrray.errors import ModelError
from vrray.models import kernels
from vrray.models.kernels import choose_attention, fuse_kernels
from vrray.models.loading import load_model

Precision = Literal["bf16", "fp32"]


def install(patch: pytest.MonkeyPatch, *, flash: bool = False, liger: bool = False) -> None:
    patch.setattr(kernels, "is_flash_attn_2_available", lambda: flash)
    patch.setattr(kernels, "is_liger_kernel_available", lambda: liger)


@pytest.mark.parametrize(
    ("installed", "gpu", "precision", "chosen"),
    [
        (True, True, "bf16", "flash_attention_2"),
        (False, True, "bf16", "sdpa"),
        (True, False, "bf16", "sdpa"),
        (True, True, "fp32", "sdpa"),
    ],
)
def test_flash_attention_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, installed: bool, gpu: bool, precision: Precision, chosen: str
) -> None:
    install(monkeypatch, flash=installed)
    assert choose_attention("auto", gpu=gpu, precision=precision) == chosen
    if chosen == "flash_attention_2":
        assert choose_attention("flash_attention_2", gpu=gpu, precision=precision) == chosen
        return
    found = rf"found: GPU {gpu}, {precision}, installed {installed}\); use --attention auto"
    with pytest.raises(ModelError, match=rf"needs a GPU, bf16 and the package flash-attn \({found}"):
        choose_attention("flash_attention_2", gpu=gpu, precision=precision)


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_attention_as_asked(monkeypatch: pytest.MonkeyPatch, wanted: Literal["sdpa", "eager"]) -> None:
    install(monkeypatch, flash=True)
    assert choose_attention(wanted, gpu=True, precision="bf16") == wanted


@pytest.mark.parametrize(("gpu", "installed"), [(False, True), (True, False), (False, False)])
def test_liger_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: bool) -> None:
    install(monkeypatch, liger=installed)
    monkeypatch.setattr(kernels, "apply_liger_kernel", lambda *_: pytest.fail("fused"))
    with pytest.raises(ModelError, match=rf"liger needs .* \(found: GPU {gpu}, installed {installed}\); leave --liger"):
        fuse_kernels(None, gpu=gpu)


def test_liger_goes_into_the_decoder_without_its_loss(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    install(monkeypatch, liger=True)
    calls: list[tuple[Any, dict[str, bool]]] = []
    monkeypatch.setattr(kernels, "apply_liger_kernel", lambda *arguments: calls.append(arguments))
    model: Any = load_model(tiny_model)
    fuse_kernels(model, gpu=True)
    ((decoder, settings),) = calls
    assert decoder is model.model.language_model
    assert settings == {"fused_linear_cross_entropy": False, "cross_entropy": False}
