"""Weight files written tensor by tensor are what safetensors reads, whole or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vrray.errors import ModelError
from vrray.models.original import Weight
from vrray.models.weight_files import whole_file, whole_or_nothing, write_file

TENSORS = {
    "half": torch.randn(3).bfloat16(),
    "count": torch.tensor(7),
    "wide": torch.randn(2, 5).T,
    "short": torch.randn(1, 3, 1).half(),
    "none": torch.zeros(0, 4),
}


def lazily(tensor: torch.Tensor, **said: Any) -> Weight:
    return Weight(
        **{"shape": tuple(tensor.shape), "dtype": tensor.dtype, "source": "it", "load": lambda: tensor} | said
    )


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    written: list[int] = []
    write_file(tmp_path / "x", {name: lazily(tensor) for name, tensor in TENSORS.items()}, written.append)
    read = load_file(tmp_path / "x")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "x", "pt") as content:
        assert content.metadata() == {"format": "pt"}
    assert sorted(written) == sorted(tensor.nbytes for tensor in TENSORS.values())


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write_file(tmp_path / "x", {name: lazily(tensor) for name, tensor in TENSORS.items()})
    for tensor in load_file(tmp_path / "x").values():
        assert tensor.data_ptr() % tensor.dtype.itemsize == 0


@pytest.mark.parametrize("said", [{"shape": (4,)}, {"dtype": torch.float32}])
def test_a_tensor_must_be_what_it_was_said_to_be(tmp_path: Path, said: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"it is torch\.bfloat16 \[3\], its header says"):
        write_file(tmp_path / "x", {"half": lazily(TENSORS["half"], **said)})


@pytest.mark.parametrize("whole", [whole_file, whole_or_nothing])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left")])
def test_what_is_not_whole_vanishes(tmp_path: Path, whole: Any, error: BaseException) -> None:
    target = tmp_path / "deep" / "target"
    expected = ModelError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), whole(target) as scratch:
        (scratch if whole is whole_file else scratch / "part").write_text("half")
        assert not target.exists()
        raise error
    assert list(target.parent.iterdir()) == []


def test_a_whole_file_gets_its_name(tmp_path: Path) -> None:
    with whole_file(tmp_path / "deep" / "x") as scratch:
        scratch.write_text("whole")
    assert (tmp_path / "deep" / "x").read_text() == "whole"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
