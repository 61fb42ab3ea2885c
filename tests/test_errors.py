"""Refusals carry what a caller needs to act on. Also light tests of a database that goes away, of
deadlines, and of secrets."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2, document_pb2, document_pb2_grpc, upload_pb2, variant_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.postgres import EmbeddedPostgres
from shared.rpc import errors
from tests import calls
from tests.assets import flows
from tests.suite import (
    APP_PASSWORD,
    ROOT,
    WORKER_PASSWORD,
    Client,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    free_port,
    running_suite,
)

DATA = flows.jpeg(64, 48)
NEVER = "0190f3c0-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        yield suite


async def test_every_refusal_says_reason_and_domain(suite: Suite) -> None:
    ada = suite.client("ada")
    refusals = [
        await calls.refused(
            flows.assets(client).GetAsset(asset_pb2.GetAssetRequest(asset_id=asset_id)), code
        )
        for client, asset_id, code in (
            (ada, "x", grpc.StatusCode.INVALID_ARGUMENT),
            (ada, NEVER, grpc.StatusCode.NOT_FOUND),
            (suite.client(None), NEVER, grpc.StatusCode.UNAUTHENTICATED),
        )
    ]

    assert [(r.domain, r.reason) for r in refusals] == [
        ("atelier", "INVALID_FIELD"),
        ("atelier", "NOT_FOUND"),
        ("atelier", "TOKEN_INVALID"),
    ]
    for r in refusals:
        assert r.status.code == r.code.value[0] and r.status.message == r.text


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"asset_id": NEVER, "update_mask": {"paths": ["nonsense"]}}, "update_mask"),
        ({"asset_id": NEVER, "update_mask": {"paths": []}}, "update_mask"),
        ({"asset_id": NEVER, "update_mask": {"paths": ["tags"]}, "tags": ["a", ""]}, "tags[1]"),
        ({"asset_id": NEVER, "update_mask": {"paths": ["tags"]}, "tags": ["a", "a"]}, "tags"),
        (
            {
                "asset_id": NEVER,
                "update_mask": {"paths": ["scope"]},
                "scope": {"room_id": "x" * 129},
            },
            "scope.room_id",
        ),
        (
            {"asset_id": NEVER, "update_mask": {"paths": ["visibility"]}, "visibility": 99},
            "visibility",
        ),
        ({"asset_id": NEVER, "update_mask": {"paths": ["visibility"]}}, "visibility"),
        ({"asset_id": "not an id", "update_mask": {"paths": ["free"]}}, "asset_id"),
    ],
)
async def test_an_invalid_field_is_named_by_its_path(
    suite: Suite, fields: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(
        flows.assets(suite.client("ada")).UpdateAsset(asset_pb2.UpdateAssetRequest(**fields)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == [path]


async def test_a_refusal_of_very_much_arrives_whole(suite: Suite) -> None:
    wrong = {"text": "m" * 300, "date": "2026-02-30"}
    content = {"cover": {"title": "t"}, "renovation_plan": {"milestones": [wrong] * 100}}
    request = document_pb2.CreateDocumentRequest(session_id="s", phase="p", content=content)
    stub = suite.client("ada").stub(document_pb2_grpc.DocumentServiceStub)
    refusal = await calls.refused(stub.CreateDocument(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.reason == "INVALID_FIELD"
    assert refusal.fields[:2] == [f"content.renovation_plan.milestones[{n}].date" for n in range(2)]

    long = errors.answer(errors.already_exists("album", "x", "\U0001f9e5" * 5000))
    assert (
        len(long.message.encode()) <= 1000
        and long.message.endswith("\U0001f9e5 ...")
        and len(long.details) == 2
    )


async def test_all_invalid_fields_are_named_at_once(suite: Suite) -> None:
    request = upload_pb2.RequestUploadRequest(declaration={"sha256": "x", "tags": [""]})
    refusal = await calls.refused(
        flows.uploads(suite.client("ada")).RequestUpload(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert {
        "declaration.kind",
        "declaration.file_name",
        "declaration.sha256",
        "declaration.tags[0]",
    } <= set(refusal.fields)


async def test_not_found_names_what_was_not_found(suite: Suite) -> None:
    ada = suite.client("ada")
    for call, kind in (
        (flows.assets(ada).GetAsset(asset_pb2.GetAssetRequest(asset_id=NEVER)), "asset"),
        (
            flows.variants(ada).ListVariants(variant_pb2.ListVariantsRequest(asset_id=NEVER)),
            "asset",
        ),
        (
            flows.uploads(ada).ConfirmUpload(upload_pb2.ConfirmUploadRequest(upload_id=NEVER)),
            "upload",
        ),
    ):
        refusal = await calls.refused(call, grpc.StatusCode.NOT_FOUND)
        resource = refusal.detail(error_details_pb2.ResourceInfo)
        assert (resource.resource_type, resource.resource_name) == (kind, NEVER)


async def test_a_state_that_forbids_is_named(suite: Suite) -> None:
    ada = suite.client("ada")
    pending = await flows.announce(ada, DATA)
    download = flows.assets(ada).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=pending.asset.id)
    )
    refusal = await calls.refused(download, grpc.StatusCode.FAILED_PRECONDITION)

    [violation] = refusal.detail(error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("WRONG_STATE", f"assets/{pending.asset.id}")


async def test_bytes_that_are_no_message_are_the_callers_fault(suite: Suite) -> None:
    call: Any = (
        suite.client("ada")
        .channel("assets")
        .unary_unary("/atelier.assets.v1.AssetService/GetAsset")
    )
    refusal = await calls.refused(call(b"\xff\xff\xff"), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.reason == "INVALID_FIELD"


def part(tag: int, data: bytes) -> bytes:
    """Encodes a field that holds bytes, in wire format."""
    size, length = bytearray(), len(data)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([tag, *size, length]) + data


@pytest.mark.parametrize("levels", [34, 200])
async def test_json_that_is_nested_too_deeply_is_called_so(suite: Suite, levels: int) -> None:
    value = part(0x1A, b"x")
    for _ in range(levels - 1):
        value = part(0x2A, part(0x0A, part(0x0A, b"a") + part(0x12, value)))
    metadata = part(0x0A, part(0x0A, b"a") + part(0x12, value))
    request = (
        part(0x12, NEVER.encode()) + part(0x22, part(0x0A, b"metadata")) + part(0x3A, metadata)
    )
    call: Any = (
        suite.client("ada")
        .channel("assets")
        .unary_unary("/atelier.assets.v1.AssetService/UpdateAsset")
    )

    await calls.refused(call(request), grpc.StatusCode.INVALID_ARGUMENT, "32 levels")


async def test_text_that_is_not_utf8_is_called_so(suite: Suite) -> None:
    call: Any = (
        suite.client("ada")
        .channel("assets")
        .unary_unary("/atelier.assets.v1.AssetService/GetAsset")
    )
    await calls.refused(call(part(0x0A, b"\xff")), grpc.StatusCode.INVALID_ARGUMENT, "isn't UTF-8")


# Overload, deadlines


async def health(client: Client) -> int:
    stub = health_pb2_grpc.HealthStub(client.channel("assets"))
    return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)).status)


async def listing(client: Client, **options: Any) -> Any:
    return await flows.assets(client).ListAssets(asset_pb2.ListAssetsRequest(), **options)


async def test_what_errors_carry_can_be_printed_by_clients_that_know_only_reflection(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    channel = own_suite.client("ada").channel("assets")

    for name in (
        "ErrorInfo",
        "BadRequest",
        "RetryInfo",
        "ResourceInfo",
        "PreconditionFailure",
        "QuotaFailure",
    ):
        answer = await calls.reflect(channel, "v1", file_containing_symbol=f"google.rpc.{name}")
        assert answer.file_descriptor_response.file_descriptor_proto, name


async def test_a_full_pool_sheds_load_while_health_and_reflection_answer(own_suite: Suite) -> None:
    own_suite.overrides |= {"pool_size": 2, "pool_wait_seconds": 0.3}
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, DATA)

    with calls.holding(
        own_suite, "SELECT * FROM assets.assets WHERE id = %s FOR UPDATE", (asset.id,)
    ):
        blocked = [asyncio.ensure_future(flows.update(ada, asset.id, free=False)) for _ in range(2)]
        await waiting_for_locks(own_suite, 2)

        refusal = await calls.refused(listing(ada, timeout=2), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refusal.reason == "OVERLOADED"
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        assert await health(ada) in (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        assert await calls.reflected_services(ada.channel("assets"), "v1")

    await asyncio.gather(*blocked)
    assert [item.id for item in (await listing(ada)).assets] == [asset.id]


async def waiting_for_locks(suite: Suite, count: int) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND"
        " wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while suite.sql(waiting)[0][0] < count:
            await asyncio.sleep(0.02)


async def test_more_calls_than_the_cap_are_refused_within_half_of_their_deadline(
    own_suite: Suite,
) -> None:
    own_suite.overrides["max_in_flight"] = 3
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, DATA)

    with calls.holding(
        own_suite, "SELECT * FROM assets.assets WHERE id = %s FOR UPDATE", (asset.id,)
    ):
        blocked = [asyncio.ensure_future(flows.update(ada, asset.id, free=False)) for _ in range(3)]
        await waiting_for_locks(own_suite, 3)
        refusal = await calls.refused(listing(ada, timeout=2), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refusal.reason == "OVERLOADED"

    await asyncio.gather(*blocked)
    await listing(ada)


@pytest.mark.long
@pytest.mark.parametrize("timeout", [0.2, None])
async def test_a_deadline_cancels_the_query_on_the_server(
    own_suite: Suite, timeout: float | None
) -> None:
    """The deadline is the caller's own, or the server's for a caller without one."""
    own_suite.overrides |= {"default_deadline_seconds": 0.2, "pool_size": 1}
    await own_suite.serve("assets")

    ada = own_suite.client("ada")
    assert (await listing(ada, timeout=20)).assets == []
    with calls.holding(own_suite, "LOCK TABLE assets.assets IN ACCESS EXCLUSIVE MODE", ()):
        await calls.refused(listing(ada, timeout=timeout), grpc.StatusCode.DEADLINE_EXCEEDED)
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'atelier-assets' AND"
            " state = 'active'"
        )
        async with asyncio.timeout(10):
            while own_suite.sql(f"{running} AND datname = current_database()")[0][0]:
                await asyncio.sleep(0.02)
    assert (await listing(ada, timeout=20)).assets == [], "the pool's one connection came back"


# Loss of the database


@contextmanager
def own_postgres() -> Iterator[tuple[EmbeddedPostgres, Path]]:
    directory = Path(tempfile.mkdtemp(prefix="atelier-postgres-"))
    directory.chmod(0o755)
    postgres = EmbeddedPostgres(directory, options={"fsync": "off"})
    try:
        postgres.start()
        yield postgres, directory
    finally:
        postgres.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.long
async def test_a_database_that_goes_away_is_unavailable_and_comes_back(
    keys: Keys, disk: DiskServer
) -> None:
    with own_postgres() as (postgres, _):
        own = Cluster(postgres.url)
        await asyncio.to_thread(own.make_template)
        async with running_suite(own, keys, disk) as suite:
            suite.overrides |= {"pool_wait_seconds": 0.5}
            await suite.serve("assets")
            await suite.work("assets")
            ada = suite.client("ada")
            asset = await flows.upload(ada, DATA)
            stream = flows.assets(ada).WatchAssets(asset_pb2.WatchAssetsRequest())
            while not (await stream.read()).bookmark.ready:
                pass
            await asyncio.to_thread(postgres.stop)

            for call in (listing, lambda c: flows.update(c, asset.id, free=False), listing):
                refusal = await calls.refused(call(ada), grpc.StatusCode.UNAVAILABLE)
                assert refusal.reason == "DEPENDENCY_UNAVAILABLE"
                assert refusal.detail(error_details_pb2.RetryInfo)

            async with asyncio.timeout(20):
                while await health(ada) != health_pb2.HealthCheckResponse.NOT_SERVING:
                    await asyncio.sleep(0.1)
            await asyncio.to_thread(postgres.start)
            assert postgres.url == own.admin_url

            async with asyncio.timeout(10):
                while await health(ada) != health_pb2.HealthCheckResponse.SERVING:
                    await asyncio.sleep(0.1)
            assert [item.id for item in (await listing(ada)).assets] == [asset.id]

            # Worker, sequencer and the open watch recover by themselves.
            await flows.update(ada, asset.id, file_name="after.jpg")
            async with asyncio.timeout(20):
                while (await stream.read()).asset.file_name != "after.jpg":
                    pass
            stream.cancel()


# Secrets


@pytest.mark.long
async def test_secrets_are_not_in_logs_nor_in_answers(
    cluster: Cluster, keys: Keys, disk: DiskServer
) -> None:
    """Runs a real process with every log line on, and canaries in its password, in tokens, URLs and
    the metadata of callers."""
    async with running_suite(cluster, keys, disk) as suite:
        port = free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "ATELIER_PORT": str(port),
            "ATELIER_LOG_LEVEL": "debug",
            "ATELIER_TRUST_FILE": str(keys.trust_file),
            "ATELIER_POOL_WAIT_SECONDS": "0.5",
            "ATELIER_DATABASE_URL": suite.settings("assets", "app").database_url.get_secret_value(),
            "ATELIER_STORAGE_ROOT": str(disk.root),
            "ATELIER_STORAGE_SECRET_FILE": str(disk.secret_file),
            "ATELIER_STORAGE_URL": disk.url,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.assets",
            "serve",
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        try:
            suite.addresses["assets"] = f"127.0.0.1:{port}"
            token = keys.token("ada")
            ada = suite.as_token(token)
            answers = await provoke(suite, ada)
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                out, err = await process.communicate()

        log = (out + err).decode()
        assert "NOT_FOUND" in log and "UNAUTHENTICATED" in log and "UNAVAILABLE" in log, log[-2000:]
        for line in filter(None, err.decode().splitlines()):
            assert json.loads(line)["level"]

        canaries = [
            token,
            token.split(".")[2],
            APP_PASSWORD,
            WORKER_PASSWORD,
            disk.secret_file.read_text(),
            "canary-header",
            "signature=",
            str(keys.stranger.as_dict(private=True)["d"]),
        ]
        for canary in canaries:
            assert canary not in log
        for canary in (
            APP_PASSWORD,
            disk.secret_file.read_text(),
            "127.0.0.1",
            "assets_app",
            "psycopg",
            "Traceback",
        ):
            assert canary not in answers


async def provoke(suite: Suite, ada: Client) -> str:
    """Makes calls that succeed and calls that fail. Returns the texts of the refusals."""
    async with asyncio.timeout(20):
        while True:
            try:
                await listing(ada)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
    texts = []
    asset = await flows.upload(ada, DATA)
    assert "signature=" in asset.original_url
    get = asset_pb2.GetAssetRequest(asset_id=str(uuid.uuid4()))
    forged = suite.as_token(suite.keys.untrusted_token())
    headers = [("authorization", "Bearer canary-header"), ("x-secret", "canary-header")]
    for call, code in (
        (flows.assets(ada).GetAsset(get), grpc.StatusCode.NOT_FOUND),
        (listing(forged), grpc.StatusCode.UNAUTHENTICATED),
        (listing(suite.client(None), metadata=headers), grpc.StatusCode.UNAUTHENTICATED),
    ):
        texts.append((await calls.refused(call, code)).text)
    # The database ends all sessions and refuses new ones, so that errors of the driver surface.
    with psycopg.connect(suite.cluster.admin_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {suite.database} ALLOW_CONNECTIONS false")
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (suite.database,),
        )
    for _ in range(3):
        texts.append((await calls.refused(listing(ada), grpc.StatusCode.UNAVAILABLE)).text)
    with psycopg.connect(suite.cluster.admin_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {suite.database} ALLOW_CONNECTIONS true")
    return "\n".join(texts)


def test_secret_settings_do_not_show_when_printed(own_suite: Suite) -> None:
    settings = own_suite.settings("assets", "app")
    canary = secrets.token_hex(8)
    shown = repr(type(settings).model_validate({**settings.model_dump(), "s3_secret_key": canary}))
    assert canary not in shown and APP_PASSWORD not in shown
