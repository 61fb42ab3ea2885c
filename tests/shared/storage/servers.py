"""The HTTP server of the disk backend as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.storage import read_secret

PROJECT = Path(__file__).resolve().parents[3]


@dataclass
class DiskServer:
    """A running `python -m shared.storage.http`."""

    url: str
    root: Path
    secret: bytes
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def serve_disk(folder: Path) -> Iterator[DiskServer]:
    """Runs the HTTP server of a new disk store under `folder`, on a free port."""
    secret_file = folder / "storage.secret"
    secret_file.write_text(uuid.uuid4().hex * 2 + "\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "ATELIER_STORAGE_ROOT": str(folder / "store"),
        "ATELIER_STORAGE_SECRET_FILE": str(secret_file),
        "ATELIER_STORAGE_HTTP_PORT": "0",
    }
    log = folder / "server.log"
    # A file, because a full pipe that nobody reads would stop the server.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "shared.storage.http"], env=environment, stderr=output
        )
    try:
        while b"\n" not in log.read_bytes():
            if process.poll() is not None:
                pytest.fail("the storage server did not start; see its error output")
            time.sleep(0.02)
        url = json.loads(log.read_text().splitlines()[0])["url"]
        yield DiskServer(url, folder / "store", read_secret(secret_file), process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
