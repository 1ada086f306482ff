"""Fixtures that tests of several modules share: a tiny LVLM, the demo LVLM, and groups of processes."""

from __future__ import annotations

import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Each test process has its own Ray clusters; sockets lie in their folder, so its path is short.
os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": tempfile.mkdtemp(prefix="vrray-", dir="/tmp")}

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from gcs import gcs_server
from gcs import new_folder as gcs_folder_at
from s3 import new_folder, s3_server
from tiny import Ground, build_tiny, prepare_ground
from xdist.scheduler import LoadScopeScheduling

from vrray.models.loading import resolve_model


class ByFile(LoadScopeScheduling):
    """With several test processes, a file's tests stay together."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of Ray clusters take longest: they come first, so that no process ends with one alone."""
    items.sort(key=lambda item: "/cluster/" not in item.nodeid)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random LLaVA with 6 decoder layers; do not write into it."""
    return build_tiny(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def ground(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A store with the features of 12 photos, and 24 rows, half of them about a photo; do not write into it."""
    ground = prepare_ground(tmp_path_factory.mktemp("ground"), tiny_model)
    held = sorted(Path(ground.store).rglob("*"))
    yield ground
    assert sorted(Path(ground.store).rglob("*")) == held, "a test wrote into the store that all tests share"


@pytest.fixture
def own_ground(ground: Ground, tmp_path: Path) -> Ground:
    """The ground with a store of its own, `tmp_path / "store"`, which holds the rows, too."""
    return ground.copied(tmp_path)


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


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The address of a server that speaks as Google Cloud Storage does."""
    with gcs_server() as address:
        yield address


@pytest.fixture
def gcs_folder(gcs: str) -> str:
    """The URI of an empty folder on it."""
    return gcs_folder_at(gcs)


@pytest.fixture(params=["local", "s3", "gcs"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder for a store: of this machine, on S3, and on GCS."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
