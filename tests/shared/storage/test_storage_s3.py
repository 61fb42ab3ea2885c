"""The promises of the S3 backend when the store is away, refuses, or was left in the middle of an
upload."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from shared.storage import ObjectNotFound, Storage, StorageError, StorageUnavailable, open_s3
from tests import versitygw
from tests.shared.storage.servers import PROJECT

HOUR = timedelta(hours=1)
MIB = 1024 * 1024

pytestmark = pytest.mark.needs_go


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Storage]]:
    """Opens stores with the gateway's settings or changed ones, and closes them at the end."""
    stores: list[Storage] = []

    def open_it(gateway: versitygw.Gateway, **changes: Any) -> Storage:
        options: dict[str, Any] = {
            "endpoint": gateway.endpoint,
            "public_endpoint": None,
            "bucket": gateway.bucket,
            "region": gateway.region,
            "access_key": gateway.access_key,
            "secret_key": gateway.secret_key,
        }
        store = open_s3(**{**options, **changes})
        stores.append(store)
        return store

    yield open_it
    for store in stores:
        await store.close()


async def test_a_store_that_is_away_is_worth_a_retry(
    gateway: versitygw.Gateway, opened: Callable[..., Storage], key: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = opened(gateway, endpoint=f"http://127.0.0.1:{port}")
    calls = [store.put(key, b"x", content_type="image/png"), store.stat(key), store.delete([key])]
    for failed in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failed, StorageUnavailable)


@pytest.mark.long
async def test_a_store_that_dies_while_it_is_read_is_worth_a_retry(
    tmp_path: Path, opened: Callable[..., Storage], key: str
) -> None:
    with versitygw.running(tmp_path / "s3") as gateway:
        store = opened(gateway)
        await store.put(key, b"x" * 64 * MIB, content_type="image/png")
        chunks = store.get(key)
        await anext(chunks)

    with pytest.raises(StorageUnavailable):
        async for _ in chunks:
            pass
    with pytest.raises(StorageUnavailable):
        await store.fetch(key, tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.long
async def test_wrong_keys_and_buckets_are_errors_without_secrets(
    gateway: versitygw.Gateway, opened: Callable[..., Storage], key: str
) -> None:
    secret = "canary" * 6
    for changes in ({"secret_key": secret}, {"bucket": "nothere"}, {"access_key": "nobody"}):
        store = opened(gateway, **changes)
        with pytest.raises(StorageError) as failed:
            await store.put(key, b"x", content_type="image/png")
        assert not isinstance(failed.value, StorageUnavailable | ObjectNotFound)
        assert secret not in str(failed.value)
        assert failed.value.__cause__ is None


PUT_FOREVER = """
import asyncio, sys
from shared.storage import open_s3

async def source():
    for _ in range(20):
        yield b"x" * 1_000_000
    print("stalled", flush=True)
    await asyncio.Event().wait()

endpoint, access_key, secret_key, key = sys.argv[1:]
store = open_s3(endpoint=endpoint, public_endpoint=None, bucket="atelier", region="us-east-1",
                access_key=access_key, secret_key=secret_key)
asyncio.run(store.put(key, source(), content_type="image/png"))
"""


async def test_a_killed_upload_leaves_no_object_and_is_swept(
    gateway: versitygw.Gateway, opened: Callable[..., Storage], key: str
) -> None:
    store = opened(gateway)
    command = [
        sys.executable,
        "-c",
        PUT_FOREVER,
        gateway.endpoint,
        gateway.access_key,
        gateway.secret_key,
        key,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert await process.stdout.readline() == b"stalled\n"

    process.kill()
    await process.wait()
    with pytest.raises(ObjectNotFound):
        await store.stat(key)
    assert await store.sweep(HOUR) == 0  # the upload may still be running
    assert await store.sweep(timedelta(seconds=-5)) == 1
    assert await store.sweep(timedelta(seconds=-5)) == 0


async def test_an_upload_by_a_browser_has_no_recorded_digest(
    gateway: versitygw.Gateway,
    opened: Callable[..., Storage],
    http: httpx.AsyncClient,
    key: str,
    tmp_path: Path,
) -> None:
    store = opened(gateway)
    form = store.sign_post(key, max_bytes=10, content_type="image/png", expires_in=HOUR)

    assert (
        await http.post(form.url, data=form.fields, files={"file": b"12345"})
    ).status_code == 204
    assert (await store.stat(key)).sha256 is None
    assert (await store.fetch(key, tmp_path / "file")).sha256 == hashlib.sha256(
        b"12345"
    ).hexdigest()
    assert (await store.copy(key, key + "-copy")).sha256 is None


async def test_urls_name_the_endpoint_that_clients_reach(
    gateway: versitygw.Gateway, opened: Callable[..., Storage]
) -> None:
    store = opened(gateway, public_endpoint="https://s3.shop.example:8443")
    urls = [
        store.sign_get("a/b", expires_in=HOUR),
        store.sign_put("a/b", length=1, content_type="image/png", expires_in=HOUR).url,
        store.sign_post("a/b", max_bytes=1, content_type="image/png", expires_in=HOUR).url,
        store.public_url("public/b"),
    ]

    for url in urls:
        assert urlsplit(url).netloc == "s3.shop.example:8443"
        assert urlsplit(url).path.startswith(f"/{gateway.bucket}")


async def test_buckets_may_be_host_names_and_public_files_on_a_cdn(
    gateway: versitygw.Gateway, opened: Callable[..., Storage]
) -> None:
    virtual = opened(
        gateway,
        endpoint=None,
        aws=True,
        region="eu-central-1",
        addressing="virtual",
        supports_post=False,
    )
    host = f"{gateway.bucket}.s3.eu-central-1.amazonaws.com"
    assert virtual.public_url("public/é") == f"https://{host}/public/%C3%A9"
    assert urlsplit(virtual.sign_get("a", expires_in=HOUR)).netloc == host
    assert not virtual.supports_post

    cdn = opened(gateway, public_base_url="https://cdn.example/")
    assert cdn.public_url("public/a b") == "https://cdn.example/public/a%20b"
