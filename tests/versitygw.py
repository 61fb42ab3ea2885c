"""A real S3 store for tests: a versitygw process on a free local port that keeps its objects in a
directory."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.suite import free_port

PROJECT = Path(__file__).resolve().parent.parent
INSTALL = (
    f"GOBIN={PROJECT / '.tools/bin'} go install github.com/versity/versitygw/cmd/versitygw@v1.7.0"
)


@dataclass(frozen=True)
class Gateway:
    """The store's address and keys, with an empty bucket in which anyone may read `public/*`."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = "atelier"
    region: str = "us-east-1"


def binary() -> str:
    """Returns the versitygw program. Without it the test fails with the command to install it."""
    folders = (os.environ.get("GOBIN"), Path.home() / "go/bin", PROJECT / ".tools/bin")
    places = [os.environ.get("PATH", ""), *(str(folder) for folder in folders if folder)]
    found = shutil.which("versitygw", path=os.pathsep.join(places))
    if found is None:
        pytest.fail(f"versitygw is not installed; install it with: {INSTALL}")
    return found


@contextmanager
def running(folder: Path) -> Iterator[Gateway]:
    """Runs a gateway that keeps its objects under `folder` and stops it at the end."""
    program = binary()
    keys = secrets.token_hex(8), secrets.token_hex(16)
    environment = {**os.environ, "ROOT_ACCESS_KEY": keys[0], "ROOT_SECRET_KEY": keys[1]}
    for name in ("objects", "log"):
        (folder / name).mkdir(parents=True)
    port = free_port()
    command = [
        program,
        "--port",
        f"127.0.0.1:{port}",
        "--health",
        "/health",
        "--quiet",
        "posix",
        str(folder / "objects"),
    ]
    with (folder / "log/versitygw").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        gateway = Gateway(f"http://127.0.0.1:{port}", *keys)
        _wait_until_up(process, gateway, folder / "log/versitygw")
        _make_bucket(gateway)
        yield gateway
    finally:
        # it would wait for open connections, and its objects aren't needed any more
        process.kill()
        process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], gateway: Gateway, log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{gateway.endpoint}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail(f"versitygw did not come up:\n{log.read_text()}")


def _make_bucket(gateway: Gateway) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=gateway.endpoint,
        region_name=gateway.region,
        aws_access_key_id=gateway.access_key,
        aws_secret_access_key=gateway.secret_key,
    )
    client.create_bucket(Bucket=gateway.bucket)
    public = f"arn:aws:s3:::{gateway.bucket}/public/*"
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": public}
    client.put_bucket_policy(Bucket=gateway.bucket, Policy=json.dumps({"Statement": [statement]}))
    client.close()
