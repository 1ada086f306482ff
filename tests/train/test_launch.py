"""Where workers listen for each other."""

from __future__ import annotations

import os

import pytest
import ray

from vrray.train.launch import use_node_address


@pytest.mark.parametrize(("chosen", "expected"), [({}, "lo"), ({"GLOO_SOCKET_IFNAME": "eth7"}, "eth7")])
def test_gloo_listens_at_the_address_that_ray_has_for_the_node(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(os, "environ", chosen)
    use_node_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == expected
