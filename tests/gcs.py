"""A server on this machine that speaks as Google Cloud Storage does (gcp-storage-emulator), in its own process."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.commands import free_port, wait_until_up

_BUCKET = "bucket"


@contextmanager
def gcs_server() -> Iterator[str]:
    """The address of a server with an empty bucket, which anybody may use."""
    port = free_port()
    program = "from gcp_storage_emulator.__main__ import main; main()"
    options = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={_BUCKET}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", program, *options], **quiet)
    try:
        bucket = f"http://127.0.0.1:{port}/storage/v1/b/{_BUCKET}"
        wait_until_up(lambda: urllib.request.urlopen(bucket, timeout=5).close(), server)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def new_folder(address: str) -> str:
    """The URI of a folder in the bucket that nothing else uses."""
    return f"gs://anonymous@{_BUCKET}/{uuid.uuid4().hex[:8]}/runs?endpoint_override={address}&scheme=http"
