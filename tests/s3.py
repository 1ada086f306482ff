"""An S3 server on this machine (moto's), in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs

from tests.cluster.commands import free_port, wait_until_up

_BUCKET = "bucket"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "vrray",
    "AWS_SECRET_ACCESS_KEY": "vrray",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # nobody answers there
}


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with an empty bucket; credentials for it are in the environment while inside."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            _make_bucket(address, server)
            yield address
        finally:
            server.kill()
            server.wait()


def new_folder(address: str) -> str:
    """The URI of a folder in the bucket that nothing else uses."""
    return f"s3://{_BUCKET}/{uuid.uuid4().hex[:8]}/runs?endpoint_override={address}&scheme=http"


def _make_bucket(address: str, server: subprocess.Popen[bytes]) -> None:
    client = fs.S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True, request_timeout=5)
    wait_until_up(lambda: client.create_dir(_BUCKET), server)
