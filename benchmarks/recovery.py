"""How long a training stands still after a fault: seconds from the fault to its line in the log, and to the next step.

python -m benchmarks.recovery [--faults worker "trial driver" driver node "node, no other" gcs]

The tests of `tests/cluster/test_faults.py` with Ray's own patience: a tiny model on two workers. What is killed as a
driver, and what ends without its GCS, is started again at once. A node is a network namespace whose cable is pulled, so
root's rights are needed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.network import Network
from tests.cluster.processes import Cluster, below
from tests.cluster.training import node_to_lose, start, training_command, wait_for_checkpoint, write_data
from tests.tiny import build_tiny


class Watched:
    """A training and when it said what."""

    def __init__(self, command: list[str], storage: Path, environment: dict[str, str]):
        self.command, self.storage, self.environment = command, storage, environment
        self.begin()

    def begin(self) -> None:
        """Start the command, for the first time or again."""
        self.process = start(self.command, **self.environment)
        self.lines: list[tuple[float, str]] = []
        threading.Thread(target=self._listen, args=(self.process, self.lines), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str], lines: list[tuple[float, str]]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic(), line))
            print(line, end="", file=sys.stderr)

    def until(self, words: str, since: float) -> float:
        """Seconds from a time to the first line after it that has these words."""
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            for when, line in list(self.lines):
                if when > since and words in line:
                    return when - since
            time.sleep(0.05)
        raise AssertionError(f"no {words!r} in {''.join(line for _, line in self.lines)}")

    def until_resumed(self, since: float) -> float:
        """Seconds from a time to the first step after a training has gone on from its checkpoint."""
        resumed = self.until("goes on from the checkpoint", since)
        return resumed + self.until(": step ", since + resumed)


Found = tuple[float | None, float]  # seconds until the fault was said, and until the next step


def worker(training: Watched, _: Cluster | None) -> Found:
    below(training.process.pid, "ray::", "TrainWorker")[-1].kill()
    return _lost(training, time.monotonic())


def trial_driver(training: Watched, _: Cluster | None) -> Found:
    (driver,) = below(training.process.pid, "ray::ImplicitFunc")
    driver.kill()
    return None, training.until(": step ", time.monotonic())


def driver(training: Watched, _: Cluster | None) -> Found:
    training.process.kill()
    training.process.wait()
    return None, _again(training, time.monotonic())


def gcs(training: Watched, cluster: Cluster | None) -> Found:
    assert cluster is not None
    (process,) = cluster.running("gcs_server")
    process.kill()
    began = time.monotonic()
    training.process.wait()
    ended = time.monotonic() - began
    cluster.stop()
    training.command = training.command[training.command.index(sys.executable) :]  # elsewhere
    training.environment = {}
    return ended, _again(training, began)


def node(training: Watched, cluster: Cluster | None) -> Found:
    assert cluster is not None
    cluster.lose(node_to_lose(cluster))
    began = time.monotonic()
    cluster.add()
    return _lost(training, began)


def node_alone(training: Watched, cluster: Cluster | None) -> Found:
    assert cluster is not None
    cluster.lose(node_to_lose(cluster))
    return _lost(training, time.monotonic())


def _lost(training: Watched, since: float) -> Found:
    return training.until("workers lost", since), training.until_resumed(since)


def _again(training: Watched, since: float) -> float:
    training.begin()
    return training.until_resumed(since)


FAULTS: dict[str, tuple[Callable[[Watched, Cluster | None], Found], bool]] = {
    "worker": (worker, False),
    "trial driver": (trial_driver, False),
    "driver": (driver, False),
    "node": (node, True),
    "node, no other": (node_alone, True),
    "gcs": (gcs, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    rows = {fault: [_suffer(fault) for _ in range(options.rounds)] for fault in options.faults}
    print("| killed | until it was said, s | until the next step, s |\n| --- | --- | --- |")
    for fault, found in rows.items():
        said, resumed = [each[0] for each in found if each[0] is not None], [each[1] for each in found]
        print(f"| {fault} | {_range(said) if said else ''} | {_range(resumed)} |")


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def _suffer(fault: str) -> Found:
    suffer, nodes = FAULTS[fault]
    # Sockets lie in Ray's folder, so its path is short.
    with (
        tempfile.TemporaryDirectory() as name,
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as ray,
    ):
        os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": ray}
        folder = Path(name)
        places = {"model": build_tiny(folder / "model"), **write_data(folder)}
        command = training_command(folder / "store", **places)
        network = Network() if nodes else None
        cluster = Cluster(0, network) if nodes else None
        try:
            if cluster is not None:
                for _ in range(2):
                    cluster.add()
                command = cluster.on_head(command)
            training = Watched(command, folder / "store", cluster.driver_environment if cluster else {})
            wait_for_checkpoint(folder / "store", 4, training.process)
            found = suffer(training, cluster)
            training.process.kill()
            training.process.wait()
            return found
        finally:
            if cluster is not None:
                cluster.stop()
            if network is not None:
                network.remove()


if __name__ == "__main__":
    main()
