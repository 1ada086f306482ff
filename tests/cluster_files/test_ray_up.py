"""The example for `ray up`, by Ray's own schema."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())


def accepted(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it: with Ray's defaults for the provider, validated."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it() -> None:
    prepared = accepted(CONFIG)
    assert prepared["max_workers"] == len(CONFIG["provider"]["worker_ips"])
    assert prepared["head_start_ray_commands"] == CONFIG["head_start_ray_commands"]


@pytest.mark.parametrize("change", [{"setup_command": ["true"]}, {"cluster_name": 2}, {"auth": {"user": "ubuntu"}}])
def test_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"(?i)additional properties|not of type"):
        accepted({**CONFIG, **change})


def test_every_node_has_the_token_and_demands_it() -> None:
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in CONFIG[commands] if "ray start" in command]
        assert "export RAY_AUTH_MODE=token " in start and "VRRAY_HOME=/mnt/" in start
