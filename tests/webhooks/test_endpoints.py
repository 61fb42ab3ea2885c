"""Endpoints: what may be saved, what is shown, and the answers to a repeat, an old etag and a
reached limit."""

import asyncio
import importlib
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.webhooks.v1 import webhook_pb2 as pb
from google.rpc import error_details_pb2

from shared.settings import Settings
from shared.webhooks.service import MAX_ENDPOINTS
from tests import calls
from tests.receiver import receiving
from tests.suite import (
    ROOT,
    Client,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    built_services,
    running_suite,
)
from tests.webhooks import flows

URL = "https://127.0.0.1:18443/hook"
NEVER = "0190f3c0-0000-7000-8000-000000000000"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """Runs webhooks with their default settings but one allowed network."""
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
        await suite.serve("assets")
        yield suite


def create(client: Client, **fields: Any) -> Any:
    return flows.stub(client).CreateEndpoint(pb.CreateEndpointRequest(**fields))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://user:opensesame@example.com/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://2130706433/",
        "https://example.com:22/",
        "https://example.com/#x",
        "nonsense",
    ],
)
async def test_a_url_inside_or_oddly_spelled_is_not_saved(suite: Suite, url: str) -> None:
    cyd = suite.client("cyd")
    for call in (create(cyd, url=url), update_to(cyd, url)):
        refusal = await calls.refused(call, INVALID)
        assert (refusal.fields, refusal.reason) == (["url"], "INVALID_FIELD")
        assert "opensesame" not in refusal.text


async def update_to(client: Client, url: str) -> None:
    made = await flows.create(client, URL)
    stub = flows.stub(client)
    request = pb.UpdateEndpointRequest(
        endpoint_id=made.endpoint.id, update_mask={"paths": ["url"]}, url=url
    )
    try:
        await stub.UpdateEndpoint(request)
    finally:
        assert (await flows.get(client, made.endpoint.id)).url == URL
        await stub.DeleteEndpoint(pb.DeleteEndpointRequest(endpoint_id=made.endpoint.id))


async def test_saving_connects_to_nobody(suite: Suite) -> None:
    async with receiving() as canary:
        await flows.create(suite.client("dan"), f"https://127.0.0.1:{canary.port}/")
        assert canary.connections == 0


async def test_a_type_that_does_not_exist_is_refused_with_those_that_do(suite: Suite) -> None:
    ada = suite.client("ada")
    call = create(ada, url=URL, event_types=["assets.asset.ready", "assets.asset.eaten"])
    refusal = await calls.refused(call, INVALID)
    assert refusal.fields == ["event_types[1]"]

    known = await flows.stub(ada).ListEventTypes(pb.ListEventTypesRequest())
    names = [known.name for known in known.event_types]
    assert all(name in refusal.text for name in names)
    assert {"assets.asset.ready", "assets.asset.deleted", "assets.variant.failed"} <= set(names)
    assert names == sorted(set(names)) and "assets.asset.unspecified" not in names

    by_name = {known.name: known.data_message for known in known.event_types}
    assert by_name["assets.asset.ready"] == "atelier.assets.v1.Asset"


async def test_the_secret_is_shown_once(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada, URL, description="for the shop", request_id="create once")
    assert made.secret.startswith("whsec_") and len(made.secret) == 50

    again = await flows.create(ada, URL, description="for the shop", request_id="create once")
    assert again == made
    for answer in (
        await flows.get(ada, made.endpoint.id),
        await flows.stub(ada).ListEndpoints(pb.ListEndpointsRequest()),
        await flows.stub(ada).EnableEndpoint(
            pb.EnableEndpointRequest(endpoint_id=made.endpoint.id)
        ),
    ):
        assert made.secret not in str(answer)

    stored = suite.sql("SELECT answer FROM assets.requests")
    assert stored and not any(made.secret.encode() in bytes(answer) for (answer,) in stored)
    told = suite.sql("SELECT payload FROM assets.events")
    assert not any(made.secret.encode() in bytes(payload) for (payload,) in told)


async def test_fields_of_the_mask_are_changed_and_an_old_etag_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    stub = flows.stub(ada)
    made = (await flows.create(ada, URL, "assets.asset.ready", description="old")).endpoint
    assert (made.owner, made.created_by, made.state) == (
        "user:ada",
        "ada",
        pb.ENDPOINT_STATE_ENABLED,
    )

    change = pb.UpdateEndpointRequest(
        endpoint_id=made.id,
        etag=made.etag,
        update_mask={"paths": ["description", "event_types"]},
        description="new",
        url="https://ignored.example/",
    )
    changed = (await stub.UpdateEndpoint(change)).endpoint
    assert (changed.description, list(changed.event_types), changed.url) == ("new", [], URL)

    late = await calls.refused(stub.UpdateEndpoint(change), grpc.StatusCode.ABORTED)
    assert late.reason == "ETAG_MISMATCH"
    for paths in ([], ["state"], ["url", "secret"]):
        wrong = pb.UpdateEndpointRequest(endpoint_id=made.id, update_mask={"paths": paths})
        assert (await calls.refused(stub.UpdateEndpoint(wrong), INVALID)).fields == ["update_mask"]


async def test_what_is_not_there_is_not_found(suite: Suite) -> None:
    ada = suite.client("ada")
    stub = flows.stub(ada)

    asked = [
        (stub.GetEndpoint(pb.GetEndpointRequest(endpoint_id=NEVER)), "webhook endpoint"),
        (stub.DeleteEndpoint(pb.DeleteEndpointRequest(endpoint_id=NEVER)), "webhook endpoint"),
        (stub.EnableEndpoint(pb.EnableEndpointRequest(endpoint_id=NEVER)), "webhook endpoint"),
        (stub.ListDeliveries(pb.ListDeliveriesRequest(endpoint_id=NEVER)), "webhook endpoint"),
        (stub.GetDelivery(pb.GetDeliveryRequest(delivery_id=NEVER)), "webhook delivery"),
        (stub.ReplayDelivery(pb.ReplayDeliveryRequest(delivery_id=NEVER)), "webhook delivery"),
    ]
    for call, kind in asked:
        refusal = await calls.refused(call, grpc.StatusCode.NOT_FOUND)
        assert refusal.detail(error_details_pb2.ResourceInfo).resource_type == kind


async def test_a_disabled_endpoint_takes_no_orders(suite: Suite) -> None:
    ada = suite.client("ada")
    stub = flows.stub(ada)
    made = (await flows.create(ada, URL)).endpoint
    ping = await stub.PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.id))
    await stub.DisableEndpoint(pb.DisableEndpointRequest(endpoint_id=made.id))

    for call in (
        stub.PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.id)),
        stub.ReplayDelivery(pb.ReplayDeliveryRequest(delivery_id=ping.delivery.id)),
        stub.ReplaySince(pb.ReplaySinceRequest(endpoint_id=made.id, since=made.create_time)),
    ):
        await calls.refused(call, grpc.StatusCode.FAILED_PRECONDITION, "enable it first")


async def test_an_anonymous_caller_may_not(suite: Suite) -> None:
    call = create(suite.client("x", "anonymous"), url=URL)
    refusal = await calls.refused(call, grpc.StatusCode.PERMISSION_DENIED)
    assert refusal.reason == "ROLE_NOT_ALLOWED"
    for role in ("vendor", "admin"):
        assert (await flows.create(suite.client("x", role), URL)).endpoint.owner == f"{role}:x"


@pytest.mark.long
async def test_an_owner_has_so_many_and_no_more(suite: Suite) -> None:
    eve = suite.client("eve")
    for _ in range(MAX_ENDPOINTS - 2):
        await flows.create(eve, URL)
    # Two endpoints are left, and more are requested at once.
    answers = await asyncio.gather(
        *(flows.create(eve, URL) for _ in range(5)), return_exceptions=True
    )
    refusals = [calls.refusal_of(a) for a in answers if isinstance(a, grpc.aio.AioRpcError)]
    assert [(r.code, r.reason) for r in refusals] == [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    ] * 3
    assert (
        str(MAX_ENDPOINTS)
        in refusals[0].detail(error_details_pb2.QuotaFailure).violations[0].description
    )

    pages: list[int] = []
    token = ""
    while not pages or token:
        page = await flows.stub(eve).ListEndpoints(
            pb.ListEndpointsRequest(page_size=20, page_token=token)
        )
        pages.append(len(page.endpoints))
        token = page.next_page_token
    assert pages == [20, 20, 10]


async def test_every_service_serves_its_own_types(own_suite: Suite) -> None:
    await own_suite.serve(*built_services())
    ada = own_suite.client("ada")
    for service in built_services():
        known = await flows.stub(ada, service).ListEventTypes(pb.ListEventTypesRequest())
        names = [known.name for known in known.event_types]
        assert names and all(name.startswith(f"{service}.") for name in names)


@pytest.mark.parametrize("service", built_services())
def test_every_subject_that_is_told_has_types(service: str) -> None:
    """A webhook would never get a subject that `events.publish` names in the sources but EVENTS
    doesn't."""
    sources = "".join(path.read_text() for path in (ROOT / "services" / service).rglob("*.py"))
    told = set(re.findall(r"events\.publish(?:_all)?\(\s*m,\s*\"(\w+)\"", sources))
    kinds = set(re.findall(r"JobKind\(\s*\"(\w+)\"", sources))
    told |= kinds
    if "events.publish_all(m, kind.purged_subject," in sources:
        told |= {f"purged_{name}" for name in kinds}
    known = set(importlib.import_module(f"services.{service}.__main__").EVENTS.subjects)
    assert told - known == set(), f"services/{service}/__main__.py: EVENTS needs each of them"
    assert known - told == set(), f"services/{service}/__main__.py: EVENTS has what none publishes"


def test_the_documentation_names_every_type() -> None:
    text = (ROOT / "docs" / "assets" / "webhooks.md").read_text()
    for service in built_services():
        for name in importlib.import_module(f"services.{service}.__main__").EVENTS.messages:
            prefix, _, change = name.rpartition(".")
            lines = [line for line in text.splitlines() if line.startswith(f"| `{prefix}.`")]
            assert len(lines) == 1, f"docs/assets/webhooks.md needs one row `{prefix}.`"
            assert f"`{change}`" in lines[0], f"the row `{prefix}.` lacks `{change}`"


def test_settings_of_webhooks_are_safe_by_default() -> None:
    settings = Settings()
    assert settings.outbound_allowed_networks == "" and not settings.webhook_http
