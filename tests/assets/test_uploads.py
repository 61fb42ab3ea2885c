"""Declared bytes become a verified asset; everything that must not become one is refused."""

import asyncio
import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2

from services.assets.core import rules
from tests import calls
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

DATA = flows.jpeg(64, 48)
READY = asset_pb2.ASSET_STATE_READY
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def objects(suite: Suite, client: Client, *parts: str) -> list[Path]:
    """Returns the files stored for the caller below folders of these names."""
    found = suite.storage.root.rglob(f"user%3A{client.subject}/**/*")
    return [path for path in found if path.is_file() and set(parts) <= set(path.parts)]


async def test_a_client_uploads_and_gets_variants(suite: Suite, ada: Client) -> None:
    data = flows.jpeg(2000, 1500)
    asset = await flows.upload(ada, data, scope=asset_pb2.AssetScope(product_id="p1"))
    assert asset.state == READY
    assert (asset.width, asset.height, asset.size_bytes) == (2000, 1500, len(data))
    assert asset.owner == f"user:{ada.subject}" and asset.created_by == ada.subject
    assert asset.sha256 == hashlib.sha256(data).hexdigest()
    assert asset.primary

    variants = await flows.variants_of(ada, asset.id)
    assert {name: v.state for name, v in variants.items()} == dict.fromkeys(
        ("thumb", "small", "large", "avif"), asset_pb2.VARIANT_STATE_READY
    )
    async with browser() as http:
        assert (await http.get(asset.original_url)).content == data


async def test_one_call_uploads_too(suite: Suite, ada: Client) -> None:
    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA))
    asset = await flows.stream_upload(ada, head, DATA[:100], b"", DATA[100:])
    assert (asset.state, asset.sha256) == (READY, hashlib.sha256(DATA).hexdigest())
    assert not asset.original_url
    assert (await flows.get(ada, asset.id, include_urls=True)).original_url


# Kinds by role

_ROLES = ("user", "vendor", "anonymous", "admin")


@pytest.mark.parametrize("kind", list(asset_pb2.AssetKind.keys())[1:])
async def test_each_kind_is_uploaded_by_its_roles_only(
    suite: Suite, caller: Callable[..., Client], kind: str
) -> None:
    word = kind.removeprefix("ASSET_KIND_").lower()
    number = asset_pb2.AssetKind.Value(kind)
    allowed = rules.KIND_ROLES.get(word, frozenset())
    assert allowed or word in rules.SERVICE_KINDS

    provenance = asset_pb2.Provenance(prompt="a room", model="local", model_version="1")
    made = {"provenance": provenance} if word in rules.SERVICE_KINDS else {}
    for role in _ROLES:
        request = upload_pb2.RequestUploadRequest(
            declaration=flows.declaration(DATA, kind=number, **made)
        )
        call = flows.uploads(caller(role)).RequestUpload(request)

        if role in allowed:
            assert (await call).asset.kind == number
        else:
            refusal = await calls.refused(call, grpc.StatusCode.PERMISSION_DENIED)
            assert refusal.reason == "ROLE_NOT_ALLOWED", role
            assert refusal.metadata == {"role": role, "kind": word}


async def test_a_service_uploads_for_an_owner_what_only_services_write(suite: Suite) -> None:
    conversions = suite.as_token(suite.keys.service_token("conversions", "user:made-for"))
    provenance = asset_pb2.Provenance(
        model="local", model_version="1", prompt="a coat", source_asset_ids=[flows.request_id()]
    )
    declared = flows.declaration(DATA, kind=asset_pb2.ASSET_KIND_RESULT, provenance=provenance)
    made = await flows.stream_upload(conversions, upload_pb2.UploadHead(declaration=declared), DATA)
    assert made.owner == "user:made-for" and made.provenance == provenance
    assert (await flows.get(suite.client("made-for"), made.id)).id == made.id


async def test_a_persons_file_has_no_provenance_of_a_model(suite: Suite, ada: Client) -> None:
    declared = flows.declaration(DATA, provenance=asset_pb2.Provenance(model="local"))
    refusal = await calls.refused(
        flows.uploads(ada).RequestUpload(upload_pb2.RequestUploadRequest(declaration=declared)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == ["declaration.provenance"]


async def test_a_style_starts_public_and_everything_else_private(
    suite: Suite, caller: Callable[..., Client], ada: Client
) -> None:
    assert (
        await flows.announce(caller("admin"), DATA, kind=asset_pb2.ASSET_KIND_STYLE)
    ).asset.visibility == (asset_pb2.VISIBILITY_PUBLIC)
    assert (await flows.announce(ada, DATA)).asset.visibility == asset_pb2.VISIBILITY_PRIVATE


# What is accepted, and how much of it


@pytest.mark.parametrize(
    ("suffix", "mime_type"),
    [
        (".jpg", "image/jpeg"),
        (".png", "image/png"),
        (".webp", "image/webp"),
        (".avif", "image/avif"),
        (".gif", "image/gif"),
        (".tiff", "image/tiff"),
    ],
)
async def test_each_picture_type_is_accepted(
    suite: Suite, ada: Client, suffix: str, mime_type: str
) -> None:
    data = bytes(pictures.textured(40, 30).write_to_buffer(suffix))
    asset = await flows.upload(ada, data, mime_type=mime_type)
    assert (asset.mime_type, asset.width, asset.height) == (mime_type, 40, 30)
    assert asset.facts.placeholder and asset.facts.dominant_colours


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tags": ["a", "b\0"]}, "tags[1]"),
        ({"scope": {"room_id": "\0"}}, "scope.room_id"),
        ({"tags": ["a"], "scope": {"session_id": "a\0b"}}, "scope.session_id"),
    ],
)
async def test_a_text_with_a_nul_is_refused_with_its_field(
    ada: Client, fields: dict[str, Any], place: str
) -> None:
    """It is refused in the head of a stream as in a call."""
    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA, **fields))
    refusal = await calls.refused(
        flows.uploads(ada).Upload(calls.aiter_of([upload_pb2.UploadRequest(head=head)])),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == [f"head.declaration.{place}"]

    refusal = await calls.refused(
        flows.announce(ada, DATA, **fields), grpc.StatusCode.INVALID_ARGUMENT, "NUL"
    )
    assert refusal.fields == [f"declaration.{place}"]


ALIASES = {
    "image/jpg": "image/jpeg",
    "IMAGE/JPEG": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/jpeg; q=1": "image/jpeg",
    "image/x-png": "image/png",
    "image/apng": "image/png",
    "image/tif": "image/tiff",
    "image/x-tiff": "image/tiff",
    "application/x-pdf": "application/pdf",
    "Application/PDF": "application/pdf",
}


@pytest.mark.parametrize("alias", ALIASES)
async def test_another_name_of_a_type_is_taken_for_it(ada: Client, alias: str) -> None:
    """Uploads of every kind accept the other name; the asset shows and signs the one name."""
    mime_type = ALIASES[alias]
    suffix = {
        "image/jpeg": ".jpg",
        "image/png": ".png",
        "image/tiff": ".tif",
        "application/pdf": "",
    }[mime_type]
    data = pictures.quadrants(40, 30).write_to_buffer(suffix) if suffix else pictures.pdf()
    kind = asset_pb2.ASSET_KIND_PHOTO if suffix else asset_pb2.ASSET_KIND_DOCUMENT
    head = upload_pb2.UploadHead(declaration=flows.declaration(data, mime_type=alias, kind=kind))
    assert (await flows.stream_upload(ada, head, data)).mime_type == mime_type

    announced = await flows.announce(ada, data, mime_type=alias, kind=kind)
    assert announced.asset.mime_type == announced.target.fields["Content-Type"] == mime_type
    assert (await flows.send(announced.target, data)).status_code == 204

    confirmed = await flows.confirm(ada, announced.upload_id)
    assert (confirmed.state, confirmed.mime_type) == (READY, mime_type)
    assert (await flows.start(ada, data, mime_type=alias, kind=kind)).asset.mime_type == mime_type


async def test_a_pdf_is_a_document_and_nothing_else(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    assert (asset.mime_type, asset.width, asset.HasField("facts")) == ("application/pdf", 0, False)

    declared = flows.declaration(pictures.pdf(), mime_type="application/pdf")
    refusal = await calls.refused(
        flows.uploads(ada).RequestUpload(upload_pb2.RequestUploadRequest(declaration=declared)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "not a PDF",
    )
    assert refusal.fields == ["declaration.mime_type"]


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"mime_type": "video/mp4"}, "declaration.mime_type", "video is not supported"),
        ({"mime_type": "image/svg+xml"}, "declaration.mime_type", "not accepted"),
        ({"mime_type": "text/html"}, "declaration.mime_type", "not accepted"),
        ({"mime_type": "application/x-msdownload"}, "declaration.mime_type", "not accepted"),
        ({"mime_type": "image/jpeg\r\nX-Evil: 1"}, "declaration.mime_type", "not accepted"),
        ({"mime_type": ""}, "declaration.mime_type", ""),
        ({"size_bytes": 0}, "declaration.size_bytes", ""),
        ({"size_bytes": -1}, "declaration.size_bytes", ""),
        ({"size_bytes": 10 * 1024 * 1024 + 1}, "declaration.size_bytes", "over the limit"),
        (
            {
                "size_bytes": 50 * 1024 * 1024 + 1,
                "kind": asset_pb2.ASSET_KIND_DOCUMENT,
                "mime_type": "application/pdf",
            },
            "declaration.size_bytes",
            "over the limit",
        ),
        ({"sha256": "ABC"}, "declaration.sha256", ""),
        ({"kind": asset_pb2.ASSET_KIND_UNSPECIFIED}, "declaration.kind", ""),
        ({"kind": 99}, "declaration.kind", ""),
        ({"visibility": 7}, "declaration.visibility", ""),
        ({"file_name": ""}, "declaration.file_name", ""),
        ({"file_name": "x" * 10_000}, "declaration.file_name", ""),
        (
            {"file_name": "\x00\x01\u202e"},
            "declaration.file_name",
            "no character that can be shown",
        ),
        ({"tags": ["x"] * 51}, "declaration.tags", ""),
        ({"tags": ["x" * 65]}, "declaration.tags[0]", ""),
        ({"scope": {"session_id": "x" * 129}}, "declaration.scope.session_id", ""),
        ({"metadata": {"a": "x" * 1_000_000}}, "declaration.metadata", "the limit is 16384"),
        ({"metadata": {"a": float("nan")}}, "declaration.metadata", "number"),
        ({"metadata": {"a": float("inf")}}, "declaration.metadata", "number"),
    ],
)
async def test_a_declaration_that_breaks_a_rule_is_refused(
    suite: Suite, ada: Client, fields: dict[str, Any], path: str, words: str
) -> None:
    declared = upload_pb2.RequestUploadRequest(declaration=flows.declaration(DATA, **fields))
    refusal = await calls.refused(
        flows.uploads(ada).RequestUpload(declared), grpc.StatusCode.INVALID_ARGUMENT, words
    )
    assert path in refusal.fields
    assert not suite.sql("SELECT 1 FROM assets.assets WHERE owner = %s", (f"user:{ada.subject}",))


@pytest.mark.parametrize("levels", [33, 500])
async def test_deep_metadata_is_refused(suite: Suite, ada: Client, levels: int) -> None:
    """500 levels are more than any protobuf library sends, so the bytes are built here."""

    def nested(depth: int) -> bytes:
        """Returns a Struct {a: {a: ...}} of so many levels: its field 1 maps `a` to a Value whose
        field 5 is a Struct."""
        inner = b""
        for _ in range(depth):
            value = tag(5) + size(inner) + inner
            entry = b"\x0a\x01a" + tag(2) + size(value) + value
            inner = tag(1) + size(entry) + entry
        return inner

    declared = (
        flows.declaration(DATA).SerializeToString() + tag(9) + size(nested(levels)) + nested(levels)
    )
    method = next(m for m in calls.methods_of(["assets"]) if m.name == "RequestUpload")
    assert (
        await calls.send_bytes(ada, method, tag(2) + size(declared) + declared)
        is grpc.StatusCode.INVALID_ARGUMENT
    )
    shallow = flows.declaration(DATA).SerializeToString() + tag(9) + size(nested(20)) + nested(20)
    assert (
        await calls.send_bytes(ada, method, tag(2) + size(shallow) + shallow) is grpc.StatusCode.OK
    )


def tag(number: int) -> bytes:
    return bytes([number << 3 | 2])


def size(data: bytes) -> bytes:
    length, out = len(data), bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*out, length])


# Only the stored bytes count


async def test_an_encrypted_pdf_is_refused(suite: Suite, ada: Client) -> None:
    fields: dict[str, Any] = {"kind": asset_pb2.ASSET_KIND_DOCUMENT, "mime_type": "application/pdf"}
    upload = flows.upload(ada, pictures.pdf(password="secret"), **fields)
    assert (await calls.refused(upload, PRECONDITION)).metadata["rejection"] == "ENCRYPTED"


async def test_other_bytes_than_declared_are_refused(suite: Suite, ada: Client) -> None:
    other = flows.jpeg(64, 48, seed=9)
    padded = DATA[:-2] + bytes(10) + DATA[-2:]

    for declared, sent, fields, rejection in (
        (DATA, DATA, {"sha256": hashlib.sha256(b"").hexdigest()}, "HASH_MISMATCH"),
        (padded, DATA, {}, "SIZE_MISMATCH"),
        (other, other, {"sha256": hashlib.sha256(DATA).hexdigest()}, "HASH_MISMATCH"),
    ):
        requested = await flows.announce(ada, declared, **fields)
        await flows.send(requested.target, sent)
        refusal = await calls.refused(flows.confirm(ada, requested.upload_id), PRECONDITION)
        assert refusal.metadata["rejection"] == rejection
    assert objects(suite, ada) == []


async def test_the_form_takes_no_more_than_declared_and_no_other_type_or_key(
    suite: Suite, ada: Client
) -> None:
    requested = await flows.announce(ada, DATA)
    longer = await flows.send(requested.target, DATA + bytes(1))
    assert longer.status_code == 413
    for field, value in (
        ("Content-Type", "text/html"),
        ("key", "assets/user%3Abob/x"),
        ("policy", "e30="),
        ("signature", "0"),
    ):
        target = upload_pb2.UploadTarget()
        target.CopyFrom(requested.target)
        target.fields[field] = value
        assert (await flows.send(target, DATA)).status_code == 403, field
    assert objects(suite, ada) == []

    confirm = upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id)
    refusal = await calls.refused(
        flows.uploads(ada).ConfirmUpload(confirm), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.reason == "NOTHING_UPLOADED"


async def test_an_empty_file_is_refused(suite: Suite, ada: Client) -> None:
    requested = await flows.announce(ada, DATA)
    assert (await flows.send(requested.target, b"")).status_code >= 400
    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA, sha256=""))
    empty = await calls.refused(flows.stream_upload(ada, head), PRECONDITION)
    assert empty.metadata["rejection"] == "EMPTY"


async def test_an_upload_url_ends(own_suite: Suite) -> None:
    own_suite.overrides["upload_url_minutes"] = 1 / 60
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    requested = await flows.announce(ada, DATA)
    await asyncio.sleep(1.2)
    assert (await flows.send(requested.target, DATA)).status_code == 403

    confirm = upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id)
    refusal = await calls.refused(
        flows.uploads(ada).ConfirmUpload(confirm),
        grpc.StatusCode.FAILED_PRECONDITION,
        "request a new upload",
    )
    assert refusal.reason == "WRONG_STATE"


async def test_upload_urls_live_a_quarter_of_an_hour(suite: Suite, ada: Client) -> None:
    requested = await flows.announce(ada, DATA)
    life = requested.target.expire_time.seconds - requested.asset.create_time.seconds
    assert 14 * 60 <= life <= 15 * 60 + 2


async def test_concurrent_confirms_end_as_one(suite: Suite, ada: Client) -> None:
    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    assets = await asyncio.gather(*(flows.confirm(ada, requested.upload_id) for _ in range(6)))
    assert len({asset.file_path for asset in assets}) == 1
    assert {asset.state for asset in assets} == {READY}
    assert len(objects(suite, ada, "original")) == 1 and objects(suite, ada, "upload") == []

    jobs = suite.sql(
        "SELECT count(*) FROM assets.renditions WHERE owner = %s", (f"user:{ada.subject}",)
    )
    assert jobs == [(1,)]


@pytest.mark.long
async def test_a_caller_who_goes_while_it_is_verified_leaves_no_copy(
    suite: Suite, ada: Client
) -> None:
    data = flows.jpeg(64, 48)
    pending = await flows.announce(ada, data, visibility=asset_pb2.VISIBILITY_PUBLIC)
    await flows.send(pending.target, data)
    folder = suite.storage.root / "data"
    with calls.holding(
        suite, "SELECT 1 FROM assets.assets WHERE id = %s FOR UPDATE", (pending.asset.id,)
    ):
        request = upload_pb2.ConfirmUploadRequest(upload_id=pending.upload_id)
        await calls.refused(
            flows.uploads(ada).ConfirmUpload(request, timeout=2), grpc.StatusCode.DEADLINE_EXCEEDED
        )

    def copies() -> list[Path]:
        return [path for path in folder.glob(f"**/{pending.asset.id}/original/*") if path.is_file()]

    async with asyncio.timeout(10):
        while copies():
            await asyncio.sleep(0.1)
    assert (
        await flows.confirm(ada, pending.upload_id)
    ).state == asset_pb2.ASSET_STATE_READY and len(copies()) == 1


@pytest.mark.long
async def test_more_files_than_can_be_verified_are_sent_away_within_half_of_their_deadline(
    suite: Suite, ada: Client
) -> None:
    confirm = flows.uploads(ada).ConfirmUpload
    with calls.holding(suite, "LOCK TABLE assets.uploads", None):
        asked = [
            asyncio.ensure_future(
                confirm(upload_pb2.ConfirmUploadRequest(upload_id=flows.request_id()), timeout=6)
            )
            for _ in range(80)
        ]
        async with asyncio.timeout(10):
            while sum(each.done() for each in asked) < 50:
                await asyncio.sleep(0.02)

    ended = await asyncio.gather(*asked, return_exceptions=True)
    refusals = [calls.refusal_of(each) for each in ended if isinstance(each, grpc.aio.AioRpcError)]
    assert len(refusals) == 80
    busy = [each for each in refusals if "verifying as many files as it can" in each.text]
    assert len(busy) > 30
    assert {(each.code, each.reason) for each in busy} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    }
    assert busy[0].detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1


async def test_an_object_that_is_swapped_after_confirming_changes_nothing(
    suite: Suite, ada: Client
) -> None:
    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    before = await flows.confirm(ada, requested.upload_id)
    # The URL is valid for a quarter of an hour; what is sent now must not reach the asset.
    await flows.send(requested.target, pictures.HTML)

    again = await flows.confirm(ada, requested.upload_id)
    assert (again.file_path, again.sha256) == (before.file_path, before.sha256)
    async with browser() as http:
        assert (await http.get(again.original_url)).content == DATA


async def test_nothing_is_ready_before_its_bytes_are_verified(suite: Suite, ada: Client) -> None:
    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    asset = await flows.get(ada, requested.asset.id, include_urls=True)
    assert asset.state == asset_pb2.ASSET_STATE_PENDING
    assert not (asset.file_path or asset.original_url or asset.sha256)


@pytest.mark.long
async def test_first_images_that_arrive_together_make_one_primary(
    suite: Suite, ada: Client
) -> None:
    scope = asset_pb2.AssetScope(product_id="p")
    made = await asyncio.gather(
        *(flows.upload(ada, flows.jpeg(64, 48, seed=n), scope=scope) for n in range(6))
    )
    assert {asset.state for asset in made} == {READY}
    now = [await flows.get(ada, asset.id) for asset in made]
    assert sum(asset.primary for asset in now) == 1


# Names and labels

NAMES = {
    "slashes": ("../../etc/passwd", ".._.._etc_passwd"),
    "backslashes": ("C:\\a\\b.jpg", "C:_a_b.jpg"),
    "NUL": ("a\x00b.jpg", "ab.jpg"),
    "right to left override": ("gpj.\u202eexe", "gpj.exe"),
    "line breaks": ("a\r\nb.jpg", "ab.jpg"),
    "decomposed": ("cafe\u0301.jpg", "café.jpg"),
    "emoji": ("\U0001f9e5 coat.jpg", "\U0001f9e5 coat.jpg"),
    "SQL": ("'; DROP TABLE assets; --", "'; DROP TABLE assets; --"),
    "wildcards": ("100%_\\.jpg", "100%__.jpg"),
    "header": ('a"; filename="evil.exe', 'a"; filename="evil.exe'),
    "many": ("ü" * 255, "ü" * 255),
    "hidden": ("\ufeffa\u200b\u061c\u2028\u2029\u00adb\U000e0041.jpg", "ab.jpg"),
    "hidden between a letter and its accent": ("cafe\u200b\u0301.jpg", "café.jpg"),
    "joined emoji": ("\U0001f469\u200d\U0001f4bb.jpg", "\U0001f469\u200d\U0001f4bb.jpg"),
    "Persian": ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
    "joiners at the ends": ("\u200d \u200c a.jpg \u200d\u200c ", "a.jpg"),
}


HIDDEN_NAMES = [
    "\u200b",
    "\ufeff",
    "\u061c",
    "\u2028\u2029",
    "\u200d",
    "\u200c \u200d",
    "\u00ad\u2060",
    "\U000e0041",
]


@pytest.mark.parametrize("name", HIDDEN_NAMES, ids=ascii)
async def test_names_of_nothing_that_shows_are_refused(ada: Client, name: str) -> None:
    refusal = await calls.refused(
        flows.announce(ada, DATA, file_name=name), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["declaration.file_name"]


@pytest.mark.long
@pytest.mark.parametrize("what", NAMES)
async def test_a_name_is_kept_for_display_and_never_part_of_a_path(
    suite: Suite, ada: Client, what: str
) -> None:
    name, shown = NAMES[what]
    asset = await flows.upload(ada, DATA, file_name=name)
    assert asset.file_name == shown == unicodedata.normalize("NFC", shown)
    assert (await flows.get(ada, asset.id)).file_name == shown
    assert shown not in asset.file_path

    async with browser() as http:
        answer = await http.get(asset.original_url)
    assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].count('"') == 2, "no name ends the quotes"


@pytest.mark.long
@pytest.mark.parametrize(
    "label",
    [
        "..",
        ".",
        "a/../b",
        "%2e%2e",
        "a%",
        "\u202e",
        "'; DROP TABLE assets; --",
        "ü" * 128,
        "x" * 128,
        "a b\tc",
    ],
)
async def test_any_label_is_kept_exactly_and_found_again(
    suite: Suite, ada: Client, label: str
) -> None:
    scope = asset_pb2.AssetScope(
        session_id=label, room_id=label, product_id=label, dataset_id=label
    )
    tags = [label[:64], "%_\\", "{}", "$1", '","', "NULL"]
    metadata = {"%": label, "'": [1, 2.5, None, True, {"$ne": label}], "n": 2**53}
    asset = await flows.upload(ada, DATA, scope=scope, tags=tags, metadata=metadata)
    assert asset.scope == scope and list(asset.tags) == tags and dict(asset.metadata)["%"] == label
    assert MessageToDict(asset.metadata)["'"] == [1, 2.5, None, True, {"$ne": label}]

    found = await flows.assets(ada).ListAssets(
        asset_pb2.ListAssetsRequest(session_id=label, room_id=label)
    )
    assert [item.id for item in found.assets] == [asset.id]
    async with browser() as http:
        assert (await http.get(asset.original_url)).content == DATA


async def test_a_label_with_a_nul_is_refused(suite: Suite, ada: Client) -> None:
    for fields in (
        {"tags": ["a\x00"]},
        {"scope": {"room_id": "\x00"}},
        {"metadata": {"a": "\x00"}},
        {"metadata": {"\x00": 1}},
    ):
        declared = upload_pb2.RequestUploadRequest(declaration=flows.declaration(DATA, **fields))
        await calls.refused(
            flows.uploads(ada).RequestUpload(declared), grpc.StatusCode.INVALID_ARGUMENT
        )


# Failures of the streamed upload alone


def streamed(client: Client, *parts: upload_pb2.UploadRequest) -> Any:
    return flows.uploads(client).Upload(calls.aiter_of(parts))


async def test_a_stream_that_breaks_its_rules_is_refused(suite: Suite, ada: Client) -> None:
    head = upload_pb2.UploadRequest(head={"declaration": flows.declaration(DATA)})
    chunk = upload_pb2.UploadRequest(chunk=DATA)
    for parts, path in (
        ((), "head"),
        ((chunk,), "head"),
        ((upload_pb2.UploadRequest(),), "part"),
        ((head, head), "head"),
        ((head, chunk, chunk), "chunk"),
        ((head, upload_pb2.UploadRequest(chunk=bytes(1024 * 1024 + 1))), "chunk"),
    ):
        refusal = await calls.refused(streamed(ada, *parts), grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.fields == [path]

    cut = streamed(ada, head, upload_pb2.UploadRequest(chunk=DATA[:-1]))
    short = await calls.refused(cut, PRECONDITION)
    assert short.metadata["rejection"] in ("SIZE_MISMATCH", "HASH_MISMATCH")
    assert objects(suite, ada) == []

    states = suite.sql(
        "SELECT DISTINCT state FROM assets.assets WHERE owner = %s", (f"user:{ada.subject}",)
    )
    assert states == [("rejected",)]


async def test_a_stream_that_is_broken_off_leaves_no_bytes_and_no_ready_row(
    suite: Suite, ada: Client
) -> None:
    async def half() -> Any:
        yield upload_pb2.UploadRequest(
            head={"request_id": "r", "declaration": flows.declaration(DATA)}
        )
        yield upload_pb2.UploadRequest(chunk=DATA[:100])
        await asyncio.sleep(60)

    call = flows.uploads(ada).Upload(half())
    mine = "SELECT state FROM assets.assets WHERE owner = %s"
    async with asyncio.timeout(10):
        while not suite.sql(mine, (f"user:{ada.subject}",)):
            await asyncio.sleep(0.02)
    call.cancel()
    async with asyncio.timeout(10):
        while objects(suite, ada):
            await asyncio.sleep(0.02)
    assert suite.sql(mine, (f"user:{ada.subject}",)) == [("pending",)]
    head = upload_pb2.UploadHead(request_id="r", declaration=flows.declaration(DATA))
    assert (await flows.stream_upload(ada, head, DATA)).state == READY
    assert suite.sql(mine, (f"user:{ada.subject}",)) == [("ready",)], (
        "the repeat went on with the same asset"
    )
