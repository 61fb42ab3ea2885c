"""Promises that only the HTTP server of the disk backend makes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
import uvicorn

from shared.storage import ObjectNotFound, objects, open_disk
from shared.storage.connections import BoundedConnection
from shared.storage.disk import DiskStorage
from shared.storage.disk_files import OpenObject
from shared.storage.http import build_app, build_config
from tests.shared.storage.servers import PROJECT, DiskServer, serve_disk
from tests.suite import browser

HOUR = timedelta(hours=1)
MIB = 1024 * 1024
BOUNDARY = "x7x7x7"


@pytest.fixture
async def disk(disk_server: DiskServer) -> AsyncIterator[DiskStorage]:
    opened = open_disk(disk_server.root, base_url=disk_server.url, secret=disk_server.secret)
    yield opened
    await opened.close()


def form_head(fields: dict[str, str]) -> bytes:
    """Returns a form up to the first byte of its file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n'
        for name in fields
    ]
    parts.append(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    )
    return "".join(parts).encode()


async def send_form(http: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response:
    return await http.post(
        url, content=body, headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    )


async def slices(data: list[bytes]) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def wait_until_nothing_is_left(root: Path, disk: DiskStorage, key: str) -> None:
    await until(lambda: not any((root / "incoming").iterdir()))
    with pytest.raises(ObjectNotFound):
        await disk.stat(key)


async def test_it_says_that_it_is_healthy(disk_server: DiskServer, http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{disk_server.url}/healthz")).json() == {"status": "ok"}


async def test_head_tells_the_headers_of_get(
    disk: DiskStorage, http: httpx.AsyncClient, key: str
) -> None:
    await disk.put(key, b"12345", content_type="image/png")
    url = disk.sign_get(key, expires_in=HOUR)
    head, get = await http.head(url), await http.get(url)
    assert head.content == b""
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
    assert head.headers["content-length"] == "5"


async def test_every_refusal_says_what_and_the_next_step(
    disk: DiskStorage, disk_server: DiskServer, http: httpx.AsyncClient, new_key: Callable[[], str]
) -> None:
    key, missing = new_key(), new_key()
    await disk.put(key, b"12345", content_type="image/png")
    url = disk.sign_get(key, expires_in=HOUR)
    signed = disk.sign_put(missing, length=3, content_type="image/png", expires_in=HOUR)
    form = disk.sign_post(missing, max_bytes=3, content_type="image/png", expires_in=HOUR)
    type_only = {"Content-Type": "image/png"}
    answers = {
        await http.get(url + "0"): 403,
        await http.get(disk.sign_get(missing, expires_in=HOUR)): 404,
        await http.get(f"{disk_server.url}/o/public/nothing"): 404,
        await http.get(f"{disk_server.url}/o/public/..%2f..%2fsecret"): 404,
        await http.get(url, headers={"Range": "bytes=5-"}): 416,
        await http.put(signed.url, content=b"1234", headers=type_only): 413,
        await http.put(signed.url, content=b"12", headers=type_only): 403,
        await http.put(signed.url, content=slices([b"123"]), headers=type_only): 411,
        await http.post(form.url, content=b"hello"): 400,
        await send_form(http, form.url, b"hello"): 400,
        await send_form(http, form.url, form_head(form.fields) + b"1234"): 413,
        await send_form(http, form.url, form_head(form.fields) + b"123"): 400,
        await http.get(f"{disk_server.url}/nowhere"): 404,
        await http.delete(url): 405,
    }

    for answer, status in answers.items():
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "next"}
        assert all(answer.json().values())
        assert url not in answer.text

    with pytest.raises(ObjectNotFound):
        await disk.stat(missing)


async def test_no_answer_can_run_in_a_browser(
    disk: DiskStorage, disk_server: DiskServer, http: httpx.AsyncClient, key: str
) -> None:
    await disk.put(key, b"<script>", content_type="text/html")
    url = disk.sign_get(key, expires_in=HOUR)

    for answer in (
        await http.get(url),
        await http.get(url + "0"),
        await http.get(f"{disk_server.url}/healthz"),
        await http.options(url),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert (await http.get(url)).headers["content-disposition"] == "attachment"


@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
async def test_a_page_of_any_origin_may_use_what_was_signed_for_it(
    disk_server: DiskServer, http: httpx.AsyncClient, method: str
) -> None:
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "content-type",
    }

    answer = await http.options(f"{disk_server.url}/o", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert method in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers


ENORMOUS = "9" * 5000


@pytest.mark.parametrize(
    "ranges",
    [
        "bytes=0-1,3-4",
        "lines=1-2",
        "bytes=x-y",
        "bytes=3-1",
        "bytes=-",
        "bytes 0-1",
        pytest.param(f"bytes={ENORMOUS}-", id="enormous first"),
        pytest.param(f"bytes=0-{ENORMOUS}", id="enormous last"),
        pytest.param(f"bytes=-{ENORMOUS}", id="enormous suffix"),
    ],
)
async def test_a_range_it_does_not_serve_is_ignored(
    disk: DiskStorage, http: httpx.AsyncClient, key: str, ranges: str
) -> None:
    await disk.put(key, b"12345", content_type="image/png")
    answer = await http.get(disk.sign_get(key, expires_in=HOUR), headers={"Range": ranges})
    assert (answer.status_code, answer.content) == (200, b"12345")


async def test_a_range_of_another_version_is_the_whole(
    disk: DiskStorage, http: httpx.AsyncClient, key: str
) -> None:
    await disk.put(key, b"12345", content_type="image/png")
    url = disk.sign_get(key, expires_in=HOUR)
    etag = (await http.get(url)).headers["etag"]
    assert (await http.get(url, headers={"Range": "bytes=1-2", "If-Range": etag})).content == b"23"
    assert (
        await http.get(url, headers={"Range": "bytes=1-2", "If-Range": '"other"'})
    ).content == b"12345"


async def test_a_download_is_of_one_version_though_it_is_replaced(
    disk: DiskStorage, http: httpx.AsyncClient, key: str
) -> None:
    await disk.put(key, b"a" * 8 * MIB, content_type="image/png")
    async with http.stream("GET", disk.sign_get(key, expires_in=HOUR)) as answer:
        chunks = answer.aiter_bytes()
        first = await anext(chunks)
        await disk.put(key, b"b" * 8 * MIB, content_type="image/png")
        assert first + b"".join([chunk async for chunk in chunks]) == b"a" * 8 * MIB


@pytest.mark.parametrize("declared", [True, False], ids=["declared length", "chunked"])
async def test_a_body_too_large_is_cut_off_early(
    disk: DiskStorage, disk_server: DiskServer, http: httpx.AsyncClient, key: str, declared: bool
) -> None:
    form = disk.sign_post(key, max_bytes=MIB, content_type="image/png", expires_in=HOUR)
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield form_head(form.fields)
        for _ in range(512):
            sent += 1
            yield b"x" * MIB

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    if declared:
        headers["Content-Length"] = str(len(form_head(form.fields)) + 512 * MIB)
    try:
        assert (await http.post(form.url, content=body(), headers=headers)).status_code == 413
    except httpx.TransportError:
        # A client that reads the answer only after sending everything finds the connection closed.
        pass
    assert sent < 128
    await wait_until_nothing_is_left(disk_server.root, disk, key)


async def test_an_upload_that_breaks_off_leaves_nothing(
    disk: DiskStorage, disk_server: DiskServer, key: str
) -> None:
    form = disk.sign_post(key, max_bytes=8 * MIB, content_type="image/png", expires_in=HOUR)
    address = urlsplit(disk_server.url)
    head = form_head(form.fields)

    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(
            "POST /o HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data;"
            f" boundary={BOUNDARY}\r\nContent-Length: {len(head) + 4 * MIB}\r\n\r\n".encode()
        )
        client.sendall(head + b"x" * 2 * MIB)
        await until(lambda: any((disk_server.root / "incoming").iterdir()))
    await wait_until_nothing_is_left(disk_server.root, disk, key)


async def test_an_upload_that_falls_silent_is_given_up(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_SILENT_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    disk = open_disk(tmp_path / "store", base_url=f"http://127.0.0.1:{port}", secret=b"s" * 32)
    server = uvicorn.Server(uvicorn.Config(build_app(disk), log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    form = disk.sign_post(key, max_bytes=8 * MIB, content_type="image/png", expires_in=HOUR)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = form_head(form.fields)
    writer.write(
        f"POST /o HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(head) + 4 * MIB}\r\n\r\n".encode()
    )
    writer.write(head + b"x" * MIB)
    assert (await reader.readline()).split()[1] == b"408"

    writer.close()
    await wait_until_nothing_is_left(tmp_path / "store", disk, key)
    server.should_exit = True
    await serving
    await disk.close()


def test_headers_without_end_are_refused_before_they_fill_the_memory(
    disk_server: DiskServer,
) -> None:
    address, sent = urlsplit(disk_server.url), 0
    with socket.create_connection((address.hostname, address.port), timeout=20) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        line = b"a: " + b"x" * 1019 + b"\r\n"
        with suppress(ConnectionError):
            while sent < 64 * MIB:
                client.sendall(line * 64)
                sent += len(line) * 64

    assert sent < 64 * MIB


def test_headers_of_an_ordinary_size_are_accepted(disk_server: DiskServer) -> None:
    assert (
        httpx.get(f"{disk_server.url}/healthz", headers={"Cookie": "x" * 32_000}).status_code == 200
    )


class Hasty(BoundedConnection):
    header_seconds = 0.3


@pytest.mark.parametrize(
    "before", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"]
)
async def test_headers_that_trickle_in_are_given_up(tmp_path: Path, before: bytes) -> None:
    disk = open_disk(tmp_path / "store", base_url="http://127.0.0.1:1", secret=b"s" * 32)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(build_config(disk, Hasty))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    if before:
        writer.write(before)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")

    writer.write(b"GET /healthz HTTP/1.1\r\n")
    ended = asyncio.create_task(reader.read())
    with suppress(ConnectionError):
        while not ended.done():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)
    with suppress(ConnectionError):
        assert await ended == b"", "no answer is owed to a request that never was whole"

    writer.close()
    server.should_exit = True
    await serving
    await disk.close()


async def test_a_request_may_take_longer_than_its_headers(tmp_path: Path, key: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    disk = open_disk(tmp_path / "store", base_url=f"http://127.0.0.1:{port}", secret=b"s" * 32)
    server = uvicorn.Server(build_config(disk, Hasty))
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(Hasty.header_seconds / 2)
            yield b"12"

    put = disk.sign_put(key, length=6, content_type="image/png", expires_in=HOUR)
    async with browser() as http:
        answer = await http.put(
            put.url, headers={**put.headers, "Content-Length": "6"}, content=slowly()
        )
    assert answer.status_code == 200
    server.should_exit = True
    await serving
    await disk.close()


@pytest.mark.parametrize(
    "form",
    [
        {f"field{number}": "x" for number in range(40)},
        {"key": "x" * 20_000},
        {"key": "x"},
        {},
    ],
    ids=["many fields", "large field", "unsigned", "empty"],
)
async def test_a_form_of_another_shape_is_refused(
    disk_server: DiskServer, http: httpx.AsyncClient, form: dict[str, str]
) -> None:
    body = form_head(form) + f"12345\r\n--{BOUNDARY}--\r\n".encode()
    assert (await send_form(http, f"{disk_server.url}/o", body)).status_code in (400, 403)


async def test_a_part_after_the_file_is_refused(
    disk: DiskStorage, http: httpx.AsyncClient, key: str
) -> None:
    form = disk.sign_post(key, max_bytes=10, content_type="image/png", expires_in=HOUR)
    rest = (
        f"\r\n--{BOUNDARY}\r\nContent-Disposition: form-data;"
        f' name="more"\r\n\r\nx\r\n--{BOUNDARY}--\r\n'
    )

    assert (
        await send_form(http, form.url, form_head(form.fields) + b"12345" + rest.encode())
    ).status_code == 400
    with pytest.raises(ObjectNotFound):
        await disk.stat(key)


@pytest.mark.long
async def test_a_body_of_any_size_takes_constant_memory(
    disk: DiskStorage, disk_server: DiskServer, http: httpx.AsyncClient, key: str
) -> None:
    def peak() -> int:
        status = Path(f"/proc/{disk_server.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    size = 192 * MIB
    await disk.put(key, b"warm", content_type="image/png")
    await http.get(disk.sign_get(key, expires_in=HOUR))
    before = peak()
    signed = disk.sign_put(key, length=size, content_type="image/png", expires_in=HOUR)
    assert (
        await http.put(signed.url, headers=signed.headers, content=slices([b"x" * MIB] * 192))
    ).status_code == 200
    async with http.stream("GET", disk.sign_get(key, expires_in=HOUR)) as answer:
        assert sum([len(chunk) async for chunk in answer.aiter_bytes()]) == size
    assert peak() - before < 32 * MIB
    await disk.delete([key])


def run_server(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    return subprocess.run(
        [sys.executable, "-m", "shared.storage.http"],
        env={**given, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_taken_port_is_said_in_one_line(disk_server: DiskServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 32)
    port = str(urlsplit(disk_server.url).port)
    ended = run_server(
        {
            "ATELIER_STORAGE_ROOT": str(tmp_path),
            "ATELIER_STORAGE_SECRET_FILE": str(tmp_path / "secret"),
            "ATELIER_STORAGE_HTTP_PORT": port,
        }
    )
    assert ended.returncode == 2
    assert ended.stdout == ""

    (line,) = ended.stderr.splitlines()
    assert port in line
    assert "ATELIER_STORAGE_HTTP_PORT" in line


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "ATELIER_STORAGE_ROOT"),
        ({"ATELIER_STORAGE_ROOT": "{}"}, "ATELIER_STORAGE_SECRET_FILE"),
        (
            {"ATELIER_STORAGE_ROOT": "{}", "ATELIER_STORAGE_SECRET_FILE": "{}/none"},
            "ATELIER_STORAGE_SECRET_FILE",
        ),
        ({"ATELIER_STORAGE_ROOT": "{}", "ATELIER_STORAGE_SECRET_FILE": "{}/short"}, "32 bytes"),
        ({"ATELIER_STORAGE_HTTP_PORT": "many"}, "ATELIER_STORAGE_HTTP_PORT"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line(
    tmp_path: Path, environment: dict[str, str], named: str
) -> None:
    (tmp_path / "short").write_text("short")
    filled = {name: value.format(tmp_path) for name, value in environment.items()}
    ended = run_server({"ATELIER_STORAGE_HTTP_PORT": "0", **filled})
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert named in line


async def test_the_log_has_every_request_and_no_signature(
    tmp_path: Path, http: httpx.AsyncClient, key: str
) -> None:
    with serve_disk(tmp_path) as server:
        disk = open_disk(server.root, base_url=server.url, secret=server.secret)
        await disk.put(key, b"x", content_type="image/png")
        url = disk.sign_get(key, expires_in=HOUR)
        signed = disk.sign_put(key, length=1, content_type="image/png", expires_in=HOUR)
        form = disk.sign_post(key, max_bytes=1, content_type="image/png", expires_in=HOUR)
        await http.get(url)
        await http.get(url + "0")
        await http.put(signed.url, headers=signed.headers, content=b"x")
        await http.post(form.url, data=form.fields, files={"file": b"x"})
        server.process.terminate()
        assert server.process.wait(20) == 0

        await disk.close()
        log = server.log.read_text()

    lines = [json.loads(line) for line in log.splitlines()[1:]]
    seen = sorted((line["method"], line["path"], line["status"]) for line in lines)
    path = f"/o/{key}"
    assert seen == [("GET", path, 200), ("GET", path, 403), ("POST", "/o", 204), ("PUT", path, 200)]
    for secret in (
        *(parse_qs(urlsplit(each).query)["signature"][0] for each in (url, signed.url)),
        form.fields["signature"],
    ):
        assert secret not in log
    assert "expires" not in log
    assert server.secret.decode() not in log


async def test_an_upload_in_flight_is_finished_before_the_server_stops(
    tmp_path: Path, http: httpx.AsyncClient, key: str
) -> None:
    with serve_disk(tmp_path) as server:
        disk = open_disk(server.root, base_url=server.url, secret=server.secret)
        signed = disk.sign_put(key, length=2 * MIB, content_type="image/png", expires_in=HOUR)

        async def body() -> AsyncIterator[bytes]:
            yield b"x" * MIB
            await until(lambda: any((server.root / "incoming").iterdir()))
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            yield b"x" * MIB

        answer = await http.put(signed.url, headers=signed.headers, content=body())
        assert answer.status_code == 200
        assert server.process.wait(20) == 0
        assert (await disk.stat(key)).size == 2 * MIB
        await disk.close()


async def test_a_file_is_closed_for_a_client_who_is_gone_before_its_first_byte(
    disk: DiskStorage, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk.put(key, b"x" * MIB, content_type="image/png")
    url = urlsplit(disk.sign_get(key, expires_in=HOUR))
    opened: list[OpenObject] = []
    really_open = disk.open

    async def noted(name: str) -> OpenObject:
        opened.append(await really_open(name))
        return opened[-1]

    monkeypatch.setattr(disk, "open", noted)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def nowhere(_message: object) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": unquote(url.path),
        "raw_path": url.path.encode(),
        "query_string": url.query.encode(),
        "headers": [],
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    with suppress(Exception):
        await build_app(disk)(scope, gone, nowhere)
    assert [each.file.closed for each in opened] == [True]
