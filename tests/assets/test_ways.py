"""However bytes come, content that isn't what it is declared to be is refused and removed; no part
of it becomes READY."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, import_pb2, import_pb2_grpc, resumable_pb2, upload_pb2

from shared.storage import Storage, open_disk, read_secret
from tests import calls
from tests.assets import flows
from tests.receiver import receiving, replying
from tests.shared.imaging import pictures, tiffs
from tests.suite import Client, Suite, browser

_numbers = iter(range(10_000))
_JPEG = pictures.jpeg()
LIARS: dict[str, tuple[bytes, str, str]] = {
    "HTML named .jpg": (pictures.HTML, "image/jpeg", "ACTIVE_CONTENT"),
    "a picture with a page behind it": (_JPEG + pictures.HTML, "image/jpeg", "ACTIVE_CONTENT"),
    "an archive behind a picture": (pictures.with_archive(_JPEG), "image/jpeg", "TYPE_NOT_ALLOWED"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "ACTIVE_CONTENT"),
    "a program": (b"\x7fELF" + bytes(100), "image/png", "EXECUTABLE"),
    "a Windows program": (b"MZ" + bytes(100), "image/jpeg", "EXECUTABLE"),
    "PNG announced as JPEG": (pictures.png(), "image/jpeg", "TYPE_MISMATCH"),
    "PDF announced as JPEG": (pictures.pdf(), "image/jpeg", "TYPE_MISMATCH"),
    "a truncated picture": (_JPEG[: len(_JPEG) // 2], "image/jpeg", "CORRUPT"),
    "only a head": (_JPEG[:24], "image/jpeg", "CORRUPT"),
    "a TIFF that no decoder here knows": (
        tiffs.coded(34925, b"?" * 900),
        "image/tiff",
        "NOT_SUPPORTED",
    ),
    "a TIFF with a tile of noise": (
        tiffs.coded(5, *[bytes(range(256))] * 4),
        "image/tiff",
        "CORRUPT",
    ),
    "2.5 gigapixels": (pictures.png_bomb(), "image/png", "TOO_MANY_PIXELS"),
    "5,000 frames": (pictures.long_gif(), "image/gif", "TOO_MANY_FRAMES"),
    "HEIC": (pictures.HEIC, "image/heic", "HEIC_NOT_SUPPORTED"),
    "a video": (
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(200),
        "image/jpeg",
        "VIDEO_NOT_SUPPORTED",
    ),
    "noise": (bytes(range(1, 200)), "image/jpeg", "TYPE_NOT_ALLOWED"),
    "other bytes than declared": (_JPEG, "image/jpeg", "HASH_MISMATCH"),
}


class Way:
    """Ways to send bytes for a caller. Each returns the asset's id and the reason of the rejection
    that the caller got."""

    def __init__(self, suite: Suite, client: Client, storage: Storage) -> None:
        self.suite, self.client, self.storage = suite, client, storage

    async def form(self, data: bytes, fields: dict[str, Any]) -> tuple[str, str]:
        requested = await flows.announce(self.client, data, **fields)
        assert (await flows.send(requested.target, data)).status_code == 204
        return await self._confirmed(requested)

    async def put(self, data: bytes, fields: dict[str, Any]) -> tuple[str, str]:
        """Uploads by PUT, as to a store without forms."""
        requested = await flows.announce(self.client, data, **fields)
        signed = self.storage.sign_put(
            requested.target.fields["key"],
            length=len(data),
            content_type=fields["mime_type"],
            expires_in=timedelta(minutes=1),
        )
        async with browser() as http:
            assert (
                await http.put(signed.url, content=data, headers=signed.headers)
            ).status_code == 200
        return await self._confirmed(requested)

    async def stream(self, data: bytes, fields: dict[str, Any]) -> tuple[str, str]:
        head = upload_pb2.UploadRequest(head={"declaration": flows.declaration(data, **fields)})
        chunks = [
            upload_pb2.UploadRequest(chunk=data[n : n + 100_000])
            for n in range(0, len(data), 100_000)
        ]
        return await self._told(flows.uploads(self.client).Upload(calls.aiter_of([head, *chunks])))

    async def resumable(self, data: bytes, fields: dict[str, Any]) -> tuple[str, str]:
        started = await flows.start(self.client, data, **fields)
        await flows.send_parts(started.targets, data)
        complete = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)
        return await self._told(flows.resumable(self.client).CompleteResumableUpload(complete))

    async def imported(self, data: bytes, fields: dict[str, Any]) -> tuple[str, str]:
        async with receiving(replying(200, data, content_type=fields["mime_type"])) as web:
            request = import_pb2.ImportAssetRequest(
                url=web.url,
                kind=asset_pb2.ASSET_KIND_PRODUCT,
                sha256=fields.get("sha256", ""),
                wait=True,
            )
            asset = (
                await self.client.stub(import_pb2_grpc.ImportServiceStub).ImportAsset(request)
            ).asset
        return asset.id, asset.rejection

    async def _confirmed(self, requested: upload_pb2.RequestUploadResponse) -> tuple[str, str]:
        confirm = upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id)
        return await self._told(flows.uploads(self.client).ConfirmUpload(confirm))

    async def _told(self, call: Awaitable[Any]) -> tuple[str, str]:
        refusal = await calls.refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        assert refusal.reason == "UPLOAD_REJECTED"
        return refusal.metadata["asset_id"], refusal.metadata["rejection"]


@pytest.fixture
async def way(open_suite: Suite) -> AsyncIterator[Way]:
    files = open_suite.storage
    storage = open_disk(files.root, base_url=files.url, secret=read_secret(files.secret_file))
    yield Way(open_suite, open_suite.client(f"sender{next(_numbers)}"), storage)
    await storage.close()


@pytest.mark.long
@pytest.mark.parametrize("what", LIARS)
@pytest.mark.parametrize("sending", ["form", "put", "stream", "resumable", "imported"])
async def test_what_is_not_what_it_says_is_refused_and_removed(
    way: Way, sending: str, what: str
) -> None:
    data, mime_type, rejection = LIARS[what]
    if sending == "imported" and rejection == "TYPE_MISMATCH":
        data, rejection = (
            pictures.pdf(),
            "TYPE_NOT_ALLOWED",
        )  # nothing is announced, so only its kind can mismatch

    fields: dict[str, Any] = {"mime_type": mime_type}
    if rejection == "HASH_MISMATCH":
        fields["sha256"] = hashlib.sha256(b"").hexdigest()
    asset_id, told = await getattr(way, sending)(data, fields)
    assert told == rejection

    asset = await flows.get(way.client, asset_id, include_urls=True)
    assert (asset.state, asset.rejection) == (asset_pb2.ASSET_STATE_REJECTED, rejection)
    assert not (asset.file_path or asset.original_url or asset.sha256) and asset.rejection_message
    for prefix in (f"assets/user%3A{way.client.subject}/", f"public/assets/{asset_id}/"):
        assert [found.key async for found in way.storage.list(prefix)] == []
    assert way.suite.sql("SELECT 1 FROM assets.variants WHERE asset_id = %s", (asset_id,)) == []


# Declarations are checked by the same rules, whoever brings the bytes.


def _importing(client: Client, fields: dict[str, Any]) -> Awaitable[Any]:
    values = {
        "url": "https://192.0.2.1/",
        "kind": asset_pb2.ASSET_KIND_PRODUCT,
        "file_name": "a.jpg",
        **fields,
    }
    importing: Awaitable[Any] = client.stub(import_pb2_grpc.ImportServiceStub).ImportAsset(
        import_pb2.ImportAssetRequest(**values)
    )
    return importing


ANNOUNCING: dict[str, tuple[str, Callable[[Client, dict[str, Any]], Awaitable[Any]]]] = {
    "RequestUpload": (
        "declaration.",
        lambda client, fields: flows.announce(client, _JPEG, **fields),
    ),
    "Upload": (
        "head.declaration.",
        lambda client, fields: flows.stream_upload(
            client, upload_pb2.UploadHead(declaration=flows.declaration(_JPEG, **fields)), _JPEG
        ),
    ),
    "StartResumableUpload": (
        "declaration.",
        lambda client, fields: flows.start(client, _JPEG, **fields),
    ),
    "ImportAsset": ("", lambda client, fields: _importing(client, fields)),
}


@pytest.mark.parametrize("announcing", ANNOUNCING)
async def test_labels_that_break_a_rule_are_refused_everywhere(
    suite: Suite, ada: Client, announcing: str
) -> None:
    path, call = ANNOUNCING[announcing]
    for fields, field in (
        ({"metadata": {"a": "x" * 1_000_000}}, "metadata"),
        ({"file_name": "x" * 10_000}, "file_name"),
        ({"file_name": "\x00\u202e"}, "file_name"),
        ({"tags": ["x"] * 51}, "tags"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"scope": {"product_id": "x" * 129}}, "scope.product_id"),
        ({"sha256": "'; DROP TABLE assets; --"}, "sha256"),
    ):
        refusal = await calls.refused(call(ada, fields), grpc.StatusCode.INVALID_ARGUMENT)
        assert f"{path}{field}" in refusal.fields, refusal.text
    assert not suite.sql("SELECT 1 FROM assets.assets WHERE owner = %s", (f"user:{ada.subject}",))


@pytest.mark.parametrize("announcing", [name for name in ANNOUNCING if name != "ImportAsset"])
async def test_odd_labels_are_kept_and_do_nothing_everywhere(
    suite: Suite, ada: Client, announcing: str
) -> None:
    odd = "'; DROP TABLE assets; --"
    made = await ANNOUNCING[announcing][1](
        ada, {"tags": [odd, "%_"], "file_name": "../../\u202egpj.exe"}
    )
    asset = made if isinstance(made, asset_pb2.Asset) else made.asset
    seen = await flows.get(ada, asset.id)
    assert (list(seen.tags), seen.file_name) == ([odd, "%_"], ".._.._gpj.exe")
