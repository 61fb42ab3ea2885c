import asyncio
from typing import Any

import pytest
from atelier.pipeline.v1 import log_pb2, phase_pb2, product_pb2
from google.protobuf import struct_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite


@pytest.fixture
async def ada(suite: Suite) -> Client:
    await suite.serve("assets", "conversions", "pipeline")
    return suite.client("ada")


async def logs_of(client: Client, **fields: Any) -> log_pb2.ListLogsResponse:
    answer: log_pb2.ListLogsResponse = await flows.logs(client).ListLogs(
        log_pb2.ListLogsRequest(**fields)
    )
    return answer


async def test_a_product_is_shown_with_facts_phases_and_urls(ada: Client) -> None:
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.create(ada, image.id, name="My jacket")

    shown = (await flows.get(ada, created.id, include_urls=True)).product
    assert (shown.name, shown.model) == ("My jacket", "KH-4107"), "as given, else as in the facts"
    assert shown.facts == flows.facts()
    assert [phase.number for phase in shown.phases] == [1, 2, 3, 4]
    assert (
        shown.images[0].image_url.startswith("http")
        and shown.created_by == "ada"
        and shown.owner == "user:ada"
    )
    assert not (await flows.get(ada, created.id)).product.images[0].image_url


async def test_lists_are_pages_with_filters(ada: Client) -> None:
    image = (await asset_flows.upload(ada, flows.photo())).id
    created = [await flows.create(ada, image, name=f"jacket {number}") for number in range(5)]
    service = flows.products(ada)
    first = await service.ListProducts(
        product_pb2.ListProductsRequest(page_size=3, include_urls=True)
    )
    rest = await service.ListProducts(
        product_pb2.ListProductsRequest(
            page_size=3, include_urls=True, page_token=first.next_page_token
        )
    )
    assert [p.id for p in [*first.products, *rest.products]] == [p.id for p in reversed(created)]
    assert not rest.next_page_token
    assert all(
        len(p.phases) == 4 and p.images[0].image_url and not p.HasField("facts")
        for p in first.products
    )

    stopped = phase_pb2.StopPhaseRequest(product_id=created[1].id, phase=1)
    await flows.phases(ada).StopPhase(stopped)
    only = product_pb2.ListProductsRequest(state=product_pb2.PRODUCT_STATE_STOPPED)
    assert [p.id for p in (await service.ListProducts(only)).products] == [created[1].id]

    since = product_pb2.ListProductsRequest(
        created_from=created[3].create_time, created_before=created[4].create_time
    )
    assert [p.id for p in (await service.ListProducts(since)).products] == [created[3].id]

    skipped = product_pb2.ListProductsRequest(skip=4)
    assert [p.id for p in (await service.ListProducts(skipped)).products] == [created[0].id]


async def test_the_summary_counts_what_the_owner_has(suite: Suite, ada: Client) -> None:
    await suite.work("pipeline")
    image = (await asset_flows.upload(ada, flows.photo())).id
    empty = await flows.products(suite.client("eve")).GetSummary(product_pb2.GetSummaryRequest())
    assert empty == product_pb2.GetSummaryResponse()

    made = await asyncio.gather(*(flows.outside(ada, image) for _ in range(4)))
    await flows.complete(
        ada, await flows.claim(ada, made[0].id, 1), flows.analysis(), confidence=0.1
    )
    claimed = await flows.claim(ada, made[1].id, 1)
    await flows.phases(ada).FailPhase(
        phase_pb2.FailPhaseRequest(
            product_id=made[1].id,
            phase=1,
            attempt_token=claimed.attempt_token,
            error_class="X",
            error_message="no",
        )
    )
    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(product_id=made[2].id, phase=1))
    assert await flows.products(ada).GetSummary(
        product_pb2.GetSummaryRequest()
    ) == product_pb2.GetSummaryResponse(
        total_products=4,
        active_pipelines=1,
        error_products=1,
        awaiting_review_products=1,
        processing_products=1,
        stopped_products=1,
    )


async def test_every_action_leaves_a_line_and_lines_can_be_added(suite: Suite, ada: Client) -> None:
    await suite.work("pipeline")
    created = await flows.outside(ada, (await asset_flows.upload(ada, flows.photo())).id)
    claimed = await flows.claim(ada, created.id, 1)
    details = struct_pb2.Struct()
    details.update({"gpu": 2, "model": "ours"})
    request = log_pb2.AppendLogRequest(
        request_id="line-1",
        product_id=created.id,
        phase=1,
        level=log_pb2.LOG_LEVEL_ERROR,
        message="50 % done",
        action="progress",
        details=details,
    )
    lines = [(await flows.logs(ada).AppendLog(request)).log for _ in range(2)]
    assert lines[0] == lines[1] and lines[0].actor == "ada" and lines[0].details["gpu"] == 2

    await flows.complete(ada, claimed, flows.analysis(), confidence=0.5)
    said = [(line.action, line.actor) for line in (await logs_of(ada, product_id=created.id)).logs]
    assert said == [
        ("review_opened", "ada"),
        ("progress", "ada"),
        ("phase_running", "ada"),
        ("phase_started", "atelier"),
        ("images_ready", "atelier"),
        ("product_created", "ada"),
    ]

    serious = await logs_of(ada, product_id=created.id, min_level=log_pb2.LOG_LEVEL_WARNING)
    assert [line.action for line in serious.logs] == ["review_opened", "progress"]
    assert [line.phase for line in (await logs_of(ada, phase=1)).logs] == [1, 1, 1, 1]

    page = await logs_of(ada, page_size=2)
    rest = await logs_of(ada, page_size=2, page_token=page.next_page_token)
    assert [line.action for line in rest.logs] == ["phase_running", "phase_started"]

    unsaid = log_pb2.AppendLogRequest(product_id=created.id, message="x")
    await refused(flows.logs(ada).AppendLog(unsaid), StatusCode.INVALID_ARGUMENT, "level")


@pytest.mark.long
async def test_creating_can_wait_for_the_end(suite: Suite, ada: Client) -> None:
    await suite.work("assets", "conversions", "pipeline")
    image = (await asset_flows.upload(ada, flows.photo())).id
    done = await flows.create(ada, image, wait=True, request_id="wait-1")
    assert done.state == product_pb2.PRODUCT_STATE_COMPLETED
    assert {phase.state for phase in done.phases} == {phase_pb2.PHASE_STATE_COMPLETED}
    assert await flows.create(ada, image, wait=True, request_id="wait-1") == done, (
        "a repeat is answered at once"
    )


@pytest.mark.long
async def test_waiting_ends_with_the_deadline(ada: Client) -> None:
    image = (await asset_flows.upload(ada, flows.photo())).id
    request = product_pb2.CreateProductRequest(
        images=[product_pb2.NewImage(asset_id=image)], wait=True
    )
    answer = await flows.products(ada).CreateProduct(request, timeout=2)
    assert answer.product.state == product_pb2.PRODUCT_STATE_UPLOADED
