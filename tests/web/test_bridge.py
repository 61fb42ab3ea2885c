"""The promises of the web process: tokens, deadlines, streams, origins, bad input, stopping."""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2

from shared.storage.connections import BoundedConnection
from tests.assets import flows
from tests.suite import ROOT, Client, Suite
from tests.web.conftest import serving
from tests.web.protocols import end_of, frame, frames

LIST = "/atelier.assets.v1.AssetService/ListAssets"
GET = "/atelier.assets.v1.AssetService/GetAsset"
WATCH = "/atelier.assets.v1.AssetService/WatchAssets"
UPLOAD = "/atelier.assets.v1.UploadService/Upload"
NOBODY = "01990000-0000-7000-8000-000000000000"


def headers(client: Client, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {client.token}", "content-type": "application/json", **more}


async def test_curl_lists_what_grpc_stored(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    asset = await flows.upload(ada, flows.jpeg(64, 48))

    curl = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--fail", web + LIST, "-d", "{}",
        *(each for name, value in headers(ada).items() for each in ("-H", f"{name}: {value}")),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await curl.communicate()

    assert [each["id"] for each in json.loads(said)["assets"]] == [asset.id]


async def test_a_read_may_be_a_get_and_a_change_may_not(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    query = {"connect": "v1", "encoding": "json", "message": "{}"}
    token = {"authorization": f"Bearer {ada.token}"}
    async with httpx.AsyncClient() as http:
        read = await http.get(web + LIST, params=query, headers=token)
        change = await http.get(
            web + "/atelier.assets.v1.AssetService/DeleteAsset", params=query, headers=token
        )
    assert (read.status_code, change.status_code) == (200, 405)


async def test_a_refusal_names_reason_field_and_what_to_do(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    async with httpx.AsyncClient() as http:
        missing = await http.post(web + GET, json={"assetId": NOBODY}, headers=headers(ada))
        wrong = await http.post(web + GET, json={"assetId": "x"}, headers=headers(ada))
    assert (missing.status_code, missing.headers["atelier-reason"]) == (404, "NOT_FOUND")
    assert "check the id" in missing.json()["message"]
    assert (wrong.status_code, wrong.headers["atelier-reason"]) == (400, "INVALID_FIELD")
    assert wrong.json()["message"] == "asset_id: must be a valid UUID"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"assetIdd": "x"}', 'no field named "assetIdd"'),
        (b'{"assetId": 5}', "assetId"),
        (b"{", "isn't the JSON of atelier.assets.v1.GetAssetRequest"),
        (b"\xff\xfe", "isn't the JSON of"),
        (b"[]", "isn't the JSON of"),
        (b'{"assetId": "a", "assetId": "b"}', "duplicate"),
    ],
)
async def test_a_body_that_is_no_json_of_the_message_is_refused(
    suite: Suite, web: str, body: bytes, says: str
) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(web + GET, content=body, headers=headers(suite.client("ada")))
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid_argument" and says in answer.json()["message"]


async def test_what_is_no_call_is_refused_by_http(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    async with httpx.AsyncClient() as http:
        nowhere = await http.post(web + "/atelier.assets.v1.AssetService/None", json={})
        kind = await http.post(
            web + LIST, content=b"{}", headers=headers(ada, **{"content-type": "text/plain"})
        )
        large = await http.post(web + LIST, content=b"x" * 5_000_000, headers=headers(ada))
        healthy = await http.get(web + "/healthz")
    assert (nowhere.status_code, kind.status_code) == (404, 415)
    assert large.status_code == 429 and large.json()["code"] == "resource_exhausted"
    assert healthy.json() == {"status": "ok"}


async def test_the_deadline_goes_to_the_service(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    began = time.monotonic()
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            web + LIST, json={}, headers=headers(ada, **{"connect-timeout-ms": "1"})
        )
    assert answer.json()["code"] == "deadline_exceeded" and time.monotonic() - began < 10


async def test_pages_of_named_origins_alone_may_call(suite: Suite) -> None:
    await suite.serve("assets")
    suite.overrides["web_origins"] = ["https://shop.example"]
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,connect-protocol-version",
    }
    async with serving(suite) as url, httpx.AsyncClient() as http:
        named = await http.options(url + LIST, headers={**asked, "origin": "https://shop.example"})
        other = await http.options(url + LIST, headers={**asked, "origin": "https://evil.example"})
    assert named.headers["access-control-allow-origin"] == "https://shop.example"
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


async def test_a_file_is_uploaded_in_one_stream(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    content = flows.jpeg(64, 48)
    head = upload_pb2.UploadHead(declaration=flows.declaration(content))
    body = b"".join(
        frame(part.SerializeToString())
        for part in (
            upload_pb2.UploadRequest(head=head),
            upload_pb2.UploadRequest(chunk=content[:1000]),
            upload_pb2.UploadRequest(chunk=content[1000:]),
        )
    )
    kind = {"content-type": "application/connect+proto"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(web + UPLOAD, content=body, headers=headers(ada, **kind))
    [(_, data)] = [(flags, part) for flags, part in frames(answer.content) if not flags & 0b10]
    made = upload_pb2.UploadResponse.FromString(data)
    assert made.asset.state == asset_pb2.ASSET_STATE_READY and "error" not in end_of(answer.content)


class Watch:
    """A watch over Connect as JSON, read message by message."""

    def __init__(self, response: httpx.Response) -> None:
        self._parts = response.aiter_raw()
        self._buffer = b""

    async def next(self) -> tuple[int, Any]:
        while True:
            found = frames(self._buffer) if len(self._buffer) >= 5 else []
            if found and len(found[0][1]) == int.from_bytes(self._buffer[1:5], "big"):
                flags, data = found[0]
                self._buffer = self._buffer[5 + len(data) :]
                return flags, json.loads(data)
            self._buffer += await anext(self._parts)


def watching(http: httpx.AsyncClient, web: str, client: Client) -> Any:
    kind = {"content-type": "application/connect+json"}
    return http.stream(
        "POST", web + WATCH, content=frame(b"{}"), headers=headers(client, **kind), timeout=30
    )


async def test_a_watch_tells_what_happens_while_it_is_open(suite: Suite, web: str) -> None:
    await suite.work("assets")
    ada = suite.client("ada")
    async with httpx.AsyncClient() as http, watching(http, web, ada) as response:
        watch = Watch(response)
        while "bookmark" not in (await watch.next())[1]:
            pass
        asset = await flows.upload(ada, flows.jpeg(64, 48))
        while True:
            _, said = await watch.next()
            if said.get("asset", {}).get("id") == asset.id:
                break


async def test_watches_of_clients_that_leave_end_at_the_service(suite: Suite) -> None:
    suite.overrides["max_streams"] = 4
    await suite.serve("assets")
    ada = suite.client("ada")
    async with serving(suite) as url, httpx.AsyncClient() as http:
        for _ in range(12):  # each would keep a place of four
            async with asyncio.timeout(30):
                while True:
                    async with watching(http, url, ada) as response:
                        flags, said = await Watch(response).next()
                    if not flags & 0b10:
                        break
                    assert said["error"]["code"] == "resource_exhausted", said
                    await asyncio.sleep(0.1)


async def test_a_process_that_stops_tells_its_watches(suite: Suite) -> None:
    await suite.serve("assets")
    ada = suite.client("ada")
    async with httpx.AsyncClient() as http, AsyncExitStack() as streams:
        async with serving(suite) as url:
            response = await streams.enter_async_context(watching(http, url, ada))
            watch = Watch(response)
            while "bookmark" not in (await watch.next())[1]:
                pass
            ended = asyncio.create_task(last_of(watch))
        said = await asyncio.wait_for(ended, 10)
    assert said["error"]["code"] == "unavailable" and "last cursor" in said["error"]["message"]


async def last_of(watch: Watch) -> Any:
    while True:
        flags, said = await watch.next()
        if flags & 0b10:
            return said


async def test_a_service_that_is_down_is_named_unavailable(suite: Suite, web: str) -> None:
    ada = suite.client("ada")
    await suite.stop("assets")
    async with httpx.AsyncClient() as http:
        answer = await http.post(web + LIST, json={}, headers=headers(ada))
        assert answer.status_code == 503 and answer.json()["code"] == "unavailable"
        assert (await http.get(web + "/healthz")).status_code == 200


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_calls_it_by_the_contract_alone(suite: Suite, web: str, protocol: str) -> None:
    ada = suite.client("ada")
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    command = [
        str(Path(sys.executable).with_name("buf")), "curl", "--protocol", protocol,
        "--schema", str(ROOT / "gen" / "atelier.binpb"),
        "-H", f"authorization: Bearer {ada.token}",
    ]  # fmt: skip

    async def run(path: str, body: str) -> tuple[int, str]:
        made = await asyncio.create_subprocess_exec(
            *command, "-d", body, web + path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await made.communicate()
        return made.returncode or 0, said.decode()

    code, said = await run(GET, json.dumps({"assetId": asset.id}))
    assert code == 0 and json.loads(said)["asset"]["id"] == asset.id
    code, said = await run(GET, '{"assetId": "x"}')
    assert code != 0 and "invalid_argument" in said
    assert "asset_id: must be a valid UUID" in said and "google.rpc.BadRequest" in said


async def test_a_client_that_sends_its_headers_too_slowly_is_let_go(
    suite: Suite, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "header_seconds", 0.2)
    host, _, port = web.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST / HTTP/1.1\r\nhost: web\r\n")
    async with asyncio.timeout(10):
        while await reader.read(1000):
            pass
    writer.close()
