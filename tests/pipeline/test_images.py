import asyncio

import pytest
from atelier.pipeline.v1 import phase_pb2, product_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Suite

ERROR = product_pb2.PRODUCT_STATE_ERROR


async def test_phase_1_waits_for_images_that_are_still_being_uploaded(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    data = flows.photo()
    announced = await asset_flows.announce(ada, data)

    created = await flows.create(ada, announced.asset.id, run_phases_externally=[1])
    watching = flows.watch(ada, created.id)
    await watching.ready()

    early = phase_pb2.StartPhaseRequest(product_id=created.id, phase=1)
    await refused(
        flows.phases(ada).StartPhase(early),
        StatusCode.FAILED_PRECONDITION,
        "images aren't all READY",
    )

    await asset_flows.send(announced.target, data)
    await asset_flows.confirm(ada, announced.upload_id)
    due = await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    assert due.phase.state == phase_pb2.PHASE_STATE_PENDING

    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_PROCESSING))
    await watching.close()


async def test_a_rejected_image_makes_the_product_an_error_that_says_why(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    announced = await asset_flows.announce(ada, b"x" * 100, sha256="")
    await asset_flows.send(announced.target, b"x" * 100)
    await refused(asset_flows.confirm(ada, announced.upload_id), StatusCode.FAILED_PRECONDITION)

    created = await flows.create(ada, announced.asset.id)
    watching = flows.watch(ada, created.id)
    failed = await watching.until(flows.product_is(ERROR))
    assert (
        failed.product.error_class == "IMAGE_REJECTED"
        and announced.asset.id in failed.product.error_message
    )

    await watching.until(lambda change: change.log.action == "images_unusable")
    retry = phase_pb2.RetryPhaseRequest(product_id=created.id, phase=1)
    await flows.phases(ada).RetryPhase(retry)
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_UPLOADED))
    await watching.until(
        lambda change: (
            change.product.state == ERROR and int(change.product.etag) > int(failed.product.etag)
        )
    )
    await watching.close()


async def test_an_image_that_the_owner_may_not_see_does_not_exist(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    eve, ada = suite.client("eve"), suite.client("ada")
    foreign = await asset_flows.upload(eve, flows.photo())
    created = await flows.create(ada, foreign.id)
    watching = flows.watch(ada, created.id)
    assert (await watching.until(flows.product_is(ERROR))).product.error_class == "IMAGE_NOT_FOUND"
    await watching.close()


async def test_a_product_stopped_while_it_waits_for_images_starts_when_it_is_retried(
    suite: Suite,
) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    data = flows.photo()
    announced = await asset_flows.announce(ada, data)
    created = await flows.create(ada, announced.asset.id, run_phases_externally=[1])
    watching = flows.watch(ada, created.id)

    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(product_id=created.id, phase=1))
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_STOPPED))

    await asset_flows.send(announced.target, data)
    await asset_flows.confirm(ada, announced.upload_id)
    await watching.until(lambda change: change.log.action == "images_ready")
    assert (await flows.get(ada, created.id)).product.state == product_pb2.PRODUCT_STATE_STOPPED

    retried = await flows.phases(ada).RetryPhase(
        phase_pb2.RetryPhaseRequest(product_id=created.id, phase=1)
    )
    assert retried.phase.due
    await watching.close()


@pytest.mark.long
async def test_assets_may_be_away_when_a_product_is_created(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    await suite.stop("assets")

    created = await flows.create(ada, image.id, run_phases_externally=[1])
    await suite.work("pipeline")

    watching = flows.watch(ada, created.id)
    await watching.ready()
    await refused(flows.get(ada, created.id, include_urls=True), StatusCode.UNAVAILABLE)

    await asyncio.sleep(1)
    await suite.stop_work("pipeline")
    await suite.serve("assets")
    await suite.work("pipeline")
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    await watching.close()


async def test_what_a_product_may_be_made_of_is_checked(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    await refused(
        flows.create(ada, image.id, image.id), StatusCode.INVALID_ARGUMENT, "each asset once"
    )

    shouting = flows.create(ada, image.id, image.id.upper())
    shouted = await refused(shouting, StatusCode.INVALID_ARGUMENT, "the same asset")
    assert shouted.fields == ["images[1].asset_id"]

    twice = [
        product_pb2.NewImage(asset_id=i, primary=True)
        for i in (image.id, "0198f4f0-0000-7000-8000-000000000000")
    ]
    await refused(
        flows.create(ada, image.id, images=twice), StatusCode.INVALID_ARGUMENT, "at most one image"
    )
    await refused(flows.create(ada, image.id, images=[]), StatusCode.INVALID_ARGUMENT, "images")

    sideways = [product_pb2.NewImage(asset_id=image.id, view="sideways")]
    await refused(flows.create(ada, image.id, images=sideways), StatusCode.INVALID_ARGUMENT, "view")
    two_lines = {"product": {"name": "one\ntwo"}}
    await refused(
        flows.create(ada, image.id, stated=two_lines),
        StatusCode.INVALID_ARGUMENT,
        "facts.product.name",
    )
    await refused(
        flows.create(ada, image.id, run_phases_externally=[5]), StatusCode.INVALID_ARGUMENT
    )


async def test_a_repeated_creation_is_one_product(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    made = await asyncio.gather(*(flows.create(ada, image.id, request_id="once") for _ in range(8)))
    assert len({product.id for product in made}) == 1
    summary = await flows.products(ada).GetSummary(product_pb2.GetSummaryRequest())
    assert summary.total_products == 1
