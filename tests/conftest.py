"""Fixtures that tests of several modules share: a tiny LVLM, the demo LVLM, and groups of processes."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from s3 import new_folder, s3_server
from tiny import Ground, build_tiny, prepare_ground
from xdist.scheduler import LoadScopeScheduling

from vrray.models.loading import resolve_model


class ByFile(LoadScopeScheduling):
    """With several test processes, a file's tests stay together, and all that start Ray run one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if "/cluster/" in file or file.endswith("test_browser_compare.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random LLaVA with 6 decoder layers; do not write into it."""
    return build_tiny(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def ground(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A store with the features of 12 photos, and 24 rows, half of them about a photo."""
    return prepare_ground(tmp_path_factory.mktemp("ground"), tiny_model)


@pytest.fixture(scope="session")
def smol() -> Path:
    """The directory of the demo LVLM, built when it is not there yet."""
    return resolve_model("smol")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def s3_folder(s3: str) -> str:
    """The URI of an empty folder on S3."""
    return new_folder(s3)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder for a store, of this machine and then on S3."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_folder")


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
