"""Tenants never meet. Every rpc in the contracts is called by the owner of some rows, by
others, and without a token.

tests/tenancy_cases/<service>.py has a case per rpc; an rpc without one fails here.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import policy_pb2

from shared.rpc import guard
from tests import calls
from tests.assets import flows
from tests.suite import (
    ROOT,
    Client,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    browser,
    built_services,
    running_suite,
)
from tests.tenancy_cases import Case, owners, webhooks

OF_EACH = webhooks.CASES | owners.CASES
CANARY = "canary-4d9e"
SERVICES = built_services()
METHODS = calls.served_by(SERVICES)
# The same name in another role is another owner; so is a name that begins with the owner's.
OTHERS = [("bob", "user"), ("ada2", "user"), ("ada", "vendor"), ("ada", "anonymous")]


# A service without cases fails in its own tests only.
MODULES = {
    service: importlib.import_module(f"tests.tenancy_cases.{service}")
    for service in SERVICES
    if (ROOT / "tests/tenancy_cases" / f"{service}.py").exists()
}


def cases() -> dict[str, Case]:
    own = {name: case for module in MODULES.values() for name, case in module.CASES.items()}
    for service in MODULES:
        own |= {f"{service}/{name}": case for name, case in OF_EACH.items()}
    return own


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides |= webhooks.SETTINGS
        await suite.serve(*SERVICES)
        yield suite


@pytest.fixture(scope="module")
async def owned(suite: Suite) -> Mapping[str, Any]:
    """Makes rows of ada in every service."""
    ada = suite.client("ada")
    rows = {name: await module.prepare(suite, ada, CANARY) for name, module in MODULES.items()}
    return rows | {
        webhooks_of(name): await webhooks.prepare(name, suite, ada, CANARY) for name in MODULES
    }


def webhooks_of(service: str) -> str:
    return f"webhooks of {service}"


def rows_for(name: str, owned: Mapping[str, Any]) -> Any:
    """Returns what `prepare` made for the case of this name."""
    service = calls.service_of(name)
    return owned[webhooks_of(service) if "/" in name else service]


def rows_of_ada(suite: Suite) -> dict[str, list[Any]]:
    """Returns the rows stored for ada, without answers, events, history and counts, which grow,
    some of them later."""
    tables = suite.sql(
        "SELECT table_schema, table_name FROM information_schema.columns WHERE column_name ="
        " 'owner' AND table_schema = ANY(%s) AND table_name NOT IN ('requests', 'events',"
        " 'attempts', 'usage_events', 'usage_days', 'storage_deltas') ORDER BY 1, 2",
        (SERVICES,),
    )
    return {
        f"{schema}.{table}": suite.sql(
            f"SELECT * FROM {schema}.{table} t WHERE owner = 'user:ada' ORDER BY t::text"
        )
        for schema, table in tables
    }


async def outcome(client: Client, name: str, case: Case, owned: Any) -> Any:
    try:
        return await calls.invoke(
            client, METHODS[name], case.requests(owned), calls.service_of(name)
        )
    except grpc.aio.AioRpcError as error:
        return error.code()


def shown(answers: Any) -> bytes:
    return b"".join(a.SerializeToString() for a in answers) if isinstance(answers, list) else b""


def test_every_rpc_has_a_case() -> None:
    assert set(METHODS) - set(cases()) == set(), "tests/tenancy_cases needs a case for each"
    assert set(cases()) - set(METHODS) == set(), "tests/tenancy_cases names no rpc with these"


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(METHODS))
async def test_only_the_owner_is_served(suite: Suite, owned: Mapping[str, Any], name: str) -> None:
    method, case = METHODS[name], cases()[name]
    rows = rows_for(name, owned)
    path = f"/{method.containing_service.full_name}/{method.name}"
    roles = {policy_pb2.Role.Name(role) for role in guard.policy_of(path).roles}

    before = rows_of_ada(suite)
    for nobody in (suite.client(None), suite.as_token(suite.keys.untrusted_token())):
        assert await outcome(nobody, name, case, rows) is grpc.StatusCode.UNAUTHENTICATED
    for turn in ("before the owner's call", "after it"):
        for subject, role in OTHERS:
            answers = await outcome(suite.client(subject, role), name, case, rows)
            who = f"{role}:{subject} {turn}"
            assert CANARY.encode() not in shown(answers), f"{who} was shown the owner's data"
            assert b"user:ada" not in shown(answers).replace(b"user:ada2", b""), (
                f"{who} was shown the owner's row"
            )
            if f"ROLE_{role.upper()}" not in roles:
                assert answers is grpc.StatusCode.PERMISSION_DENIED, who
            elif isinstance(case.others, grpc.StatusCode):
                assert answers is case.others, who
            else:
                assert isinstance(answers, list) and case.others(answers), f"{who}: {answers}"

        if turn == "before the owner's call":
            assert rows_of_ada(suite) == before, "another owner changed the rows"
            served = await outcome(suite.client("ada", case.owner_role), name, case, rows)
            if case.owner is grpc.StatusCode.OK:
                assert isinstance(served, list), f"the owner isn't served: {served}"
            else:
                assert served is case.owner


async def test_a_watch_tells_an_owner_of_nobody_else(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client("ada")
    watching = [own_suite.client(subject, role) for subject, role in OTHERS]
    streams = [
        flows.assets(client).WatchAssets(asset_pb2.WatchAssetsRequest())
        for client in (ada, *watching)
    ]
    for stream in streams:
        assert (await stream.read()).bookmark.ready

    # Ada's change is committed and told before theirs: if it reached them, they would read it
    # first.
    made = [
        await flows.announce(c, flows.jpeg(64, 48), kind=asset_pb2.ASSET_KIND_PHOTO)
        for c in (ada, *watching)
    ]
    for stream, announced in zip(streams, made, strict=True):
        assert (await stream.read()).asset.id == announced.asset.id
        stream.cancel()


async def test_a_cursor_of_another_owner_is_refused(suite: Suite) -> None:
    async with asyncio.timeout(10):
        async for item in flows.assets(suite.client("ada")).WatchAssets(
            asset_pb2.WatchAssetsRequest()
        ):
            if item.cursor:
                break

    stolen = flows.assets(suite.client("bob")).WatchAssets(
        asset_pb2.WatchAssetsRequest(cursor=item.cursor)
    )
    refusal = await calls.refused(stolen, grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == ["cursor"]


@pytest.fixture(scope="module")
async def private(suite: Suite) -> asset_pb2.Asset:
    return await flows.upload(suite.client("ada"), flows.jpeg(64, 48))


async def status_of(url: str) -> int:
    async with browser() as http:
        return (await http.get(url)).status_code


def changed(url: str, **parameters: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(
        parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **parameters}))
    )


async def test_a_signed_url_opens_only_what_it_was_signed_for(
    suite: Suite, private: asset_pb2.Asset
) -> None:
    other = await flows.upload(suite.client("bob"), flows.jpeg(64, 48, seed=2))
    assert await status_of(private.original_url) == 200

    key_of_another = urlsplit(other.original_url)._replace(
        query=urlsplit(private.original_url).query
    )
    refused = {
        "signature of another object": urlunsplit(key_of_another),
        "longer life": changed(private.original_url, expires="99999999999"),
        "another type": changed(private.original_url, type="text/html"),
        "another signature": changed(private.original_url, signature="0" * 64),
        "no signature": urlunsplit(urlsplit(private.original_url)._replace(query="")),
        "read as public": private.original_url.replace("/o/assets/", "/o/public/assets/"),
    }
    for what, url in refused.items():
        assert await status_of(url) in (403, 404), what


async def test_a_signed_url_ends(cluster: Cluster, keys: Keys, disk: DiskServer) -> None:
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["download_url_minutes"] = 1 / 60
        await suite.serve("assets")
        asset = await flows.upload(suite.client("ada"), flows.jpeg(64, 48))
        for _ in range(100):
            if await status_of(asset.original_url) == 403:
                break
            await asyncio.sleep(0.05)
        assert await status_of(asset.original_url) == 403


async def test_an_id_of_another_owner_reads_like_one_that_was_never_given(
    suite: Suite, private: asset_pb2.Asset
) -> None:
    bob = suite.client("bob")
    never = "0190f3c0-0000-7000-8000-000000000000"

    foreign, absent = [
        await calls.refused(
            flows.assets(bob).GetAsset(asset_pb2.GetAssetRequest(asset_id=asset_id)),
            grpc.StatusCode.NOT_FOUND,
        )
        for asset_id in (private.id, never)
    ]
    assert foreign.text.replace(private.id, never) == absent.text
    assert foreign.status.SerializeToString().replace(private.id.encode(), never.encode()) == (
        absent.status.SerializeToString()
    )


async def test_a_service_acts_only_with_the_rights_of_the_owner_it_names(
    suite: Suite, private: asset_pb2.Asset
) -> None:
    for owner in ("user:bob", "vendor:ada"):
        client = suite.as_token(suite.keys.service_token("techfiles", owner))
        await calls.refused(
            flows.assets(client).GetAsset(asset_pb2.GetAssetRequest(asset_id=private.id)),
            grpc.StatusCode.NOT_FOUND,
        )
    client = suite.as_token(suite.keys.service_token("techfiles", "user:ada"))
    assert (await flows.get(client, private.id)).id == private.id
