"""An S3 server of moto's on loopback, and the environment by which clients find it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qkspec.checkpoints import remote


@contextmanager
def served() -> Iterator[tuple[int, Any]]:
    """Yield the server's port and a client of it; skips where moto, s3fs or botocore is missing."""
    boto = pytest.importorskip("botocore.session")
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    _forget()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, time.monotonic() + 60)
        yield (
            port,
            boto.get_session().create_client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
            ),
        )
    finally:
        _forget()
        server.terminate()
        server.wait(10)


def _forget() -> None:
    """Drop clients of an earlier server, which fsspec keeps."""
    from s3fs import S3FileSystem

    remote._filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()


def use(patch: pytest.MonkeyPatch, port: int) -> None:
    """Lead every S3 client of this process to a port."""
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)


def _wait_for(port: int, until: float) -> None:
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError
