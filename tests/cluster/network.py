"""A network of one machine: hosts with an address and a Ray folder of their own, whose cables can be pulled.

Hosts are network namespaces on a bridge. Making them takes root's rights and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import count
from pathlib import Path

_NUMBERS = count(1)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A bridge and the hosts on it.

    Raises:
        OSError, subprocess.CalledProcessError: this process may not make one.
    """

    def __init__(self) -> None:
        self._name = f"vr{os.getpid()}n{next(_NUMBERS)}"
        self._hosts: list[Host] = []
        _ip("netns", "add", self._name)
        try:
            _ip("-n", self._name, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._name, "link", "set", "bridge", "up")
            self.add()
        except BaseException:
            self.remove()
            raise

    def add(self) -> Host:
        """Another host, with the next address."""
        number = len(self._hosts) + 1
        host = Host(f"{self._name}h{number}", f"10.231.0.{number}")
        _ip("netns", "add", host.name)
        self._hosts.append(host)
        cable = ["type", "veth", "peer", "name", f"p{number}", "netns", self._name]
        _ip("-n", host.name, "link", "add", "eth0", *cable)
        _ip("-n", self._name, "link", "set", f"p{number}", "master", "bridge", "up")
        _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.name, "link", "set", device, "up")
        return host

    @property
    def first(self) -> Host:
        return self._hosts[0]

    def remove(self) -> None:
        for name in (*(host.name for host in self._hosts), self._name):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        for host in self._hosts:
            shutil.rmtree(host.folder, ignore_errors=True)


class Host:
    """A host: its address, and a folder that its processes see in the place of Ray's."""

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address
        self.folder = Path(f"{os.environ['RAY_TMPDIR']}-{name}")
        self.folder.mkdir()

    def run(self, command: Sequence[str]) -> list[str]:
        """The command that runs another one there, as the same process."""
        mount = 'mount --bind "$0" "$RAY_TMPDIR" && exec "$@"'
        inside = ["unshare", "--mount", "sh", "-c", mount, str(self.folder), *command]
        return ["nsenter", f"--net=/run/netns/{self.name}", *inside]

    def pull(self) -> None:
        """Pull its cable: nothing that is sent to it arrives, and nothing says so."""
        _ip("-n", self.name, "link", "set", "eth0", "down")
