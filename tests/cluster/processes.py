"""Processes that a test started, and Ray nodes among them; those of tests that run beside it are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.cluster.commands import ROOT, free_port
from tests.cluster.network import Host, Network

RAY = str(Path(sys.executable).with_name("ray"))


def below(process: int, *words: str) -> list[psutil.Process]:
    """What a process started, directly or not, and whose command has all of these words."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                if all(word in command for word in words):
                    found.append(child)
    return found


def daemons(folder: str) -> list[str]:
    """The commands of Ray's daemons whose temporary files are below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if folder in command and ("raylet/raylet" in command or "gcs_server" in command):
            found.append(command)
    return found


class Node:
    """A Ray node of a cluster with token authentication, from `ray start` on; on a host where one is given."""

    def __init__(self, *options: str, host: Host | None, environment: dict[str, str]):
        self._host = host
        agent = f"--dashboard-agent-listen-port={free_port()}"
        command = [RAY, "start", "--block", "--disable-usage-stats", agent, *options]
        self._process = subprocess.Popen(
            host.run([*command, f"--node-ip-address={host.address}"]) if host else command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "block forever" in line:
                return
        raise AssertionError("".join(said))

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self, *words: str) -> list[psutil.Process]:
        """What runs on this node and whose command has all of these words."""
        return below(self._process.pid, *words)

    def lose(self) -> None:
        """Kill everything on the node at once, as when its power fails: to others it is silent, where it can be."""
        if self._host:
            self._host.pull()
        self.stop()

    def stop(self) -> None:
        """Kill everything on the node."""
        for process in [psutil.Process(self.pid), *self.running()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Cluster:
    """A head node and those that are added to it, with addresses of their own where a network is given."""

    def __init__(self, cpus: int, network: Network | None = None, **environment: str):
        self._network = network
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment = {**inherited, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token", **environment}
        port, dashboard = free_port(), free_port()
        address = network.first.address if network else "127.0.0.1"
        self.address, self.jobs = f"{address}:{port}", f"http://{address}:{dashboard}"
        subprocess.run([RAY, "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True)
        head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
        self.nodes = [Node(*head, host=network.first if network else None, environment=self.environment)]

    @property
    def driver_environment(self) -> dict[str, str]:
        """Of a driver that is to use this cluster."""
        return {**self.environment, "RAY_ADDRESS": self.address}

    def on_head(self, command: Sequence[str]) -> list[str]:
        """The command that runs another one on the head node's host, as the same process."""
        if self._network is None:
            return [*command]
        head = ["nsenter", "--target", str(self.nodes[0].pid), "--net", "--mount", f"--wd={ROOT}"]
        return [*head, *command]

    def add(self, cpus: int = 1) -> Node:
        host = self._network.add() if self._network else None
        options = [f"--address={self.address}", f"--num-cpus={cpus}"]
        self.nodes.append(Node(*options, host=host, environment=self.environment))
        return self.nodes[-1]

    def lose(self, node: Node) -> None:
        self.nodes.remove(node)
        node.lose()

    def running(self, *words: str) -> list[psutil.Process]:
        """What runs on any node and whose command has all of these words."""
        return [process for node in self.nodes for process in node.running(*words)]

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()
        self.nodes = []
