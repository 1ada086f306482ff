"""`vrray dashboard` as one starts it: pages at once, answers at its endpoint from Ray that it starts, nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import psutil
import pytest

pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)

from tests.cluster.commands import free_port
from tests.dashboard.answering import SWEEP, answering_store

pytestmark = pytest.mark.ray
QUESTION = [{"role": "user", "content": "Which colour has the sky?"}]


def test_pages_and_answers_until_interrupted(smol: Path, tmp_path: Path) -> None:
    store, port, api = answering_store(tmp_path / "store", smol, "smol"), free_port(), free_port()
    command = [sys.executable, "-m", "vrray.cli", "dashboard", "--store", store.uri, "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--api-port", str(api)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 120
        while f"dashboard: http://127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        assert b"vrray" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
        assert not psutil.Process(process.pid).children(recursive=True)  # Ray waits for the first question
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{api}/v1", api_key="none", timeout=240, max_retries=0)
        for variant in ("untuned", "top-2-prune1", "untuned"):  # the second comes after what started Ray has ended
            asked = client.chat.completions.create(model=f"{SWEEP}/{variant}", messages=QUESTION, max_tokens=4)
            assert asked.usage.completion_tokens > 0
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        gone, left = psutil.wait_procs(started, 20)
        assert not left, left
        assert gone
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
