import asyncio
import uuid

from atelier.pipeline.v1 import log_pb2, product_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite


async def with_image(suite: Suite) -> tuple[Client, str]:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    return ada, (await asset_flows.upload(ada, flows.photo())).id


def watch_all(client: Client, **fields: object) -> flows.Watching:
    request = product_pb2.WatchProductsRequest(**fields)  # type: ignore[arg-type]
    return flows.Watching(flows.products(client).WatchProducts(request))


async def note(client: Client, product_id: str, text: str) -> log_pb2.LogEntry:
    request = log_pb2.AppendLogRequest(
        request_id=flows.request_id(),
        product_id=product_id,
        level=log_pb2.LOG_LEVEL_WARNING,
        message=text,
    )
    entry: log_pb2.LogEntry = (await flows.logs(client).AppendLog(request)).log
    return entry


async def test_a_watch_begins_with_the_product_and_all_it_has(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    await flows.complete(
        ada, await flows.claim(ada, created.id, 1), flows.analysis(), confidence=0.5
    )
    watching = flows.watch(ada, created.id)
    await watching.ready()
    kinds = [change.WhichOneof("item") for change in watching.changes]
    assert kinds[:7] == ["product", "phase", "phase", "phase", "phase", "result", "review"]
    assert set(kinds[7:-1]) == {"log"} and kinds[-1] == "bookmark"

    said = [change.log.action for change in watching.changes if change.HasField("log")]
    assert said[0] == "product_created" and said[-1] == "review_opened"
    assert [i.asset_id for i in watching.changes[0].product.images] == [image]
    await watching.close()


async def test_a_watch_goes_on_where_it_was_left(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    watching = flows.watch(ada, created.id)
    await watching.ready()
    cursor = watching.changes[-1].cursor
    await watching.close()

    texts = [f"note {number}" for number in range(20)]
    for text in texts:
        await note(ada, created.id, text)

    again = flows.watch(ada, created.id, cursor=cursor)
    await again.until(lambda change: change.log.message == texts[-1])
    assert [change.log.message for change in again.changes] == texts

    await again.close()
    foreign = flows.watch(ada, str(uuid.uuid4()), cursor=cursor)
    await refused(foreign.ready(), StatusCode.NOT_FOUND)

    other = watch_all(ada, cursor=cursor)
    await refused(other.ready(), StatusCode.INVALID_ARGUMENT, "cursor")


async def test_all_products_are_watched_in_one_stream_with_logs_on_request(suite: Suite) -> None:
    ada, image = await with_image(suite)
    first = await flows.outside(ada, image)
    quiet, full = watch_all(ada), watch_all(ada, include_logs=True)
    await asyncio.gather(quiet.ready(), full.ready())
    assert {change.product.id for change in quiet.changes if change.HasField("product")} == {
        first.id
    }

    second = await flows.outside(ada, image)
    await note(ada, second.id, "look here")
    await full.until(lambda change: change.log.message == "look here")
    await flows.complete(ada, await flows.claim(ada, first.id, 1), flows.analysis())
    await quiet.until(lambda change: change.result.product_id == first.id)
    assert {second.id} <= {
        change.product.id for change in quiet.changes if change.HasField("product")
    }
    assert not any(change.HasField("log") for change in quiet.changes)
    await asyncio.gather(quiet.close(), full.close())


async def test_nobody_sees_another_owners_changes(suite: Suite) -> None:
    ada, image = await with_image(suite)
    eve = suite.client("eve")
    hers = watch_all(eve, include_logs=True)
    await hers.ready()

    created = await flows.outside(ada, image)
    await note(ada, created.id, "secret")

    mine = flows.watch(ada, created.id)
    await mine.until(lambda change: change.log.message == "secret")
    own = await flows.create(eve, (await asset_flows.upload(eve, flows.photo())).id)

    await hers.until(lambda change: change.product.id == own.id)
    assert not [change for change in hers.changes if created.id in str(change)]
    await asyncio.gather(hers.close(), mine.close())


async def test_the_message_never_holds_an_attempt_token(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    watching = flows.watch(ada, created.id)
    await watching.ready()
    claimed = await flows.claim(ada, created.id, 1)
    await watching.until(lambda change: change.phase.attempt_number == 1)

    await watching.close()
    assert claimed.attempt_token not in str(watching.changes)
    assert (
        suite.sql(
            "SELECT 1 FROM pipeline.events WHERE position(%s::bytea in payload) > 0",
            [claimed.attempt_token.encode()],
        )
        == []
    )
