"""Images of a new product come by URL, or in the call's own stream; what is refused leaves
nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.common.v1 import view_pb2
from atelier.pipeline.v1 import product_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.receiver import Receiver, Request, receiving, replying
from tests.suite import Client, Suite

FRONT, BACK = asset_flows.jpeg(64, 48), asset_flows.jpeg(48, 64)
NOTHING: list[Any] = []
Part = product_pb2.UploadProductRequest
STATES = (
    asset_pb2.ASSET_STATE_PENDING,
    asset_pb2.ASSET_STATE_READY,
    asset_pb2.ASSET_STATE_REJECTED,
)


@pytest.fixture
async def ada(suite: Suite) -> Client:
    suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
    await suite.serve("assets", "pipeline")
    await suite.work("assets", "pipeline")
    return suite.client("ada")


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    pictures = {"/front.jpg": FRONT, "/back.jpg": BACK, "/page.html": b"<html></html>"}

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.line.split()[1].partition("?")[0]
        reply = replying(200, pictures[path]) if path in pictures else replying(404)
        await reply(request, writer)

    async with receiving(answer) as receiver:
        yield receiver


async def assets_of(client: Client) -> list[asset_pb2.Asset]:
    """Returns all assets, whatever their state."""
    stub = client.stub(asset_pb2_grpc.AssetServiceStub)
    return [
        asset
        for state in STATES
        for asset in (await stub.ListAssets(asset_pb2.ListAssetsRequest(state=state))).assets
    ]


async def left(suite: Suite, client: Client) -> list[Any]:
    """Returns all that a refused call may have left behind."""
    listed = await flows.products(client).ListProducts(product_pb2.ListProductsRequest())
    drafts = suite.sql("SELECT id FROM pipeline.product_drafts")
    return [*listed.products, *await assets_of(client), *drafts]


def by_url(*urls: str, **fields: Any) -> product_pb2.CreateProductRequest:
    images = [product_pb2.NewImage(image_url=url) for url in urls]
    values = {"name": "Jacket", "run_phases_externally": [1], **fields}
    return product_pb2.CreateProductRequest(images=images, **values)


def image(data: bytes, **fields: Any) -> list[Part]:
    """Returns the messages that send one image, in chunks of 1,000 bytes."""
    values = {
        "file_name": "front.jpg",
        "mime_type": "image/jpeg",
        "size_bytes": len(data),
        **fields,
    }
    chunks = [Part(chunk=data[at : at + 1000]) for at in range(0, len(data), 1000)]
    return [Part(image=product_pb2.UploadImageHead(**values)), *chunks]


def head(**fields: Any) -> list[Part]:
    values = {"name": "Jacket", "run_phases_externally": [1], **fields}
    return [Part(head=product_pb2.UploadProductHead(**values))]


async def upload(client: Client, *parts: Sequence[Part]) -> product_pb2.Product:
    messages = [message for part in parts for message in part]
    product: product_pb2.Product = (
        await flows.products(client).UploadProduct(iter(messages), timeout=30)
    ).product
    return product


async def test_images_are_fetched_from_their_urls(ada: Client, web: Receiver) -> None:
    url = f"http://127.0.0.1:{web.port}"
    request = by_url(f"{url}/front.jpg?token=secret", f"{url}/back.jpg", request_id="once")
    request.images[1].primary = True
    request.images[1].view_type = view_pb2.VIEW_TYPE_BACK
    product = (await flows.products(ada).CreateProduct(request)).product
    assert [each.source_url for each in product.images] == [f"{url}/front.jpg", f"{url}/back.jpg"]
    assert [each.primary for each in product.images] == [False, True]

    watching = flows.watch(ada, product.id)
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    await watching.close()
    made = await assets_of(ada)
    assert {each.id for each in made} == {each.asset_id for each in product.images}
    assert all(each.kind == asset_pb2.ASSET_KIND_PRODUCT for each in made)
    assert all(each.scope.product_id == product.id for each in made)

    again = (await flows.products(ada).CreateProduct(request)).product
    assert again == product and len(await assets_of(ada)) == 2, "nothing is fetched again"


@pytest.mark.parametrize(
    ("path", "words"), [("/gone.jpg", "FETCH_FAILED"), ("/page.html", "CONTENT")]
)
async def test_an_image_that_cannot_be_fetched_makes_the_product_an_error_that_names_it(
    ada: Client, web: Receiver, path: str, words: str
) -> None:
    url = f"http://127.0.0.1:{web.port}"
    product = (
        await flows.products(ada).CreateProduct(by_url(f"{url}/front.jpg", f"{url}{path}"))
    ).product
    watching = flows.watch(ada, product.id)
    failed = (await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_ERROR))).product
    await watching.close()
    assert failed.error_class == "IMAGE_REJECTED" and words in failed.error_message
    assert f"{url}{path}" in failed.error_message


@pytest.mark.parametrize(
    "bad",
    ["http://192.168.0.1/a.jpg", "http://localhost:1/a.jpg", "ftp://x/a.jpg", "a.jpg"],
)
async def test_a_url_that_is_never_fetched_leaves_nothing(
    suite: Suite, web: Receiver, bad: str
) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    request = by_url("https://192.0.2.7/front.jpg", bad)
    request.images[0].image_url = bad
    request.images[1].image_url = "https://[::1]/b.jpg"
    info = await refused(flows.products(ada).CreateProduct(request), StatusCode.INVALID_ARGUMENT)
    assert info.fields == ["images[0].image_url"]
    assert await left(suite, ada) == NOTHING


async def test_one_bad_url_among_good_ones_leaves_nothing(
    suite: Suite, ada: Client, web: Receiver
) -> None:
    good = f"http://127.0.0.1:{web.port}/front.jpg"
    request = by_url(good, "http://192.168.0.1/b.jpg", request_id="once")
    info = await refused(flows.products(ada).CreateProduct(request), StatusCode.INVALID_ARGUMENT)
    assert info.fields == ["images[1].image_url"]
    assert await left(suite, ada) == NOTHING

    request.images[1].image_url = f"http://127.0.0.1:{web.port}/back.jpg"
    made = (await flows.products(ada).CreateProduct(request)).product
    assert len(made.images) == 2, "a refused request doesn't use its id up"


async def test_an_image_is_an_asset_or_a_url(ada: Client, web: Receiver) -> None:
    url = f"http://127.0.0.1:{web.port}/front.jpg"
    create = flows.products(ada).CreateProduct
    both = by_url(url)
    both.images[0].asset_id = flows.request_id()
    await refused(create(both), StatusCode.INVALID_ARGUMENT, "either asset_id or image_url")
    await refused(create(by_url("")), StatusCode.INVALID_ARGUMENT, "either asset_id or image_url")
    await refused(create(by_url(url, url)), StatusCode.INVALID_ARGUMENT, "each URL once")
    many = [f"{url}?{number}" for number in range(17)]
    await refused(create(by_url(*many)), StatusCode.INVALID_ARGUMENT, "images")
    lines = by_url(url, condition="two\nlines")
    info = await refused(create(lines), StatusCode.INVALID_ARGUMENT, "one line")
    assert info.fields == ["condition"] and not web.requests


async def test_a_product_comes_with_its_images_in_one_call(ada: Client) -> None:
    back = image(BACK, file_name="back.jpg", primary=True, view_type=view_pb2.VIEW_TYPE_BACK)
    said = head(model="KH-1", condition="used", condition_details="a torn hem")
    product = await upload(ada, said, image(FRONT), back)
    assert (product.name, product.model, product.condition) == ("Jacket", "KH-1", "used")
    assert [(each.primary, each.view_type) for each in product.images] == [
        (False, view_pb2.VIEW_TYPE_UNSPECIFIED),
        (True, view_pb2.VIEW_TYPE_BACK),
    ]
    made = {each.id: each for each in await assets_of(ada)}
    sent = [made[each.asset_id] for each in product.images]
    assert [each.state for each in sent] == [asset_pb2.ASSET_STATE_READY] * 2
    assert [each.file_name for each in sent] == ["front.jpg", "back.jpg"]
    assert [each.size_bytes for each in sent] == [len(FRONT), len(BACK)]

    watching = flows.watch(ada, product.id)
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    await watching.close()


async def test_a_repeated_stream_is_one_product_and_other_bytes_are_refused(
    suite: Suite, ada: Client
) -> None:
    said = head(request_id="once")
    made = [await upload(ada, said, image(FRONT), image(BACK)) for _ in range(2)]
    assert made[0] == made[1] and len(await assets_of(ada)) == 2

    other = FRONT[:-1] + b"x"
    for images in ([*image(FRONT), *image(FRONT)], image(FRONT), [*image(other), *image(BACK)]):
        info = await refused(upload(ada, said, images), StatusCode.INVALID_ARGUMENT, "once")
        assert info.reason == "REQUEST_ID_REUSED"

    at_once = await asyncio.gather(
        *(upload(ada, head(request_id="both"), image(FRONT)) for _ in range(2))
    )
    assert at_once[0].id == at_once[1].id
    assert len(await assets_of(ada)) == 3, "what the later one brought is discarded"
    assert not suite.sql("SELECT id FROM pipeline.product_drafts")


Stream = Callable[[], list[Part]]
BAD: dict[str, tuple[Stream, StatusCode, str]] = {
    "no head": (lambda: image(FRONT), StatusCode.INVALID_ARGUMENT, "the first message"),
    "nothing": (list, StatusCode.INVALID_ARGUMENT, "the first message"),
    "no image": (head, StatusCode.INVALID_ARGUMENT, "none was sent"),
    "two heads": (
        lambda: [*head(), *image(FRONT), *head()],
        StatusCode.INVALID_ARGUMENT,
        "only once",
    ),
    "a chunk without a head": (
        lambda: [*head(), *image(FRONT)[1:]],
        StatusCode.INVALID_ARGUMENT,
        "before the head of an image",
    ),
    "a head without chunks": (
        lambda: [*head(), *image(FRONT), *image(BACK)[:1]],
        StatusCode.INVALID_ARGUMENT,
        "no bytes came after the head of image 2",
    ),
    "a head without chunks before another": (
        lambda: [*head(), *image(BACK)[:1], *image(FRONT)],
        StatusCode.INVALID_ARGUMENT,
        "no bytes came after the head of image 1",
    ),
    "too few bytes": (
        lambda: [*head(), *image(FRONT), *image(BACK, size_bytes=len(BACK) + 5)],
        StatusCode.FAILED_PRECONDITION,
        "image 2 (front.jpg)",
    ),
    "too many bytes": (
        lambda: [*head(), *image(FRONT, size_bytes=10)],
        StatusCode.INVALID_ARGUMENT,
        "more than the 10 bytes",
    ),
    "another type": (
        lambda: [*head(), *image(FRONT), *image(b"GIF89a" + b"x" * 3000)],
        StatusCode.FAILED_PRECONDITION,
        "image 2 (front.jpg)",
    ),
    "no picture": (
        lambda: [*head(), *image(b"%PDF-1.7 x", mime_type="application/pdf")],
        StatusCode.INVALID_ARGUMENT,
        "image.mime_type: image 1 (front.jpg)",
    ),
    "too large": (
        lambda: [*head(), *image(FRONT, size_bytes=20_000_000)],
        StatusCode.INVALID_ARGUMENT,
        "image.size_bytes: image 1 (front.jpg)",
    ),
    "another digest": (
        lambda: [*head(), *image(FRONT, sha256="0" * 64)],
        StatusCode.FAILED_PRECONDITION,
        "image 1 (front.jpg)",
    ),
    "two primary ones": (
        lambda: [*head(), *image(FRONT, primary=True), *image(BACK, primary=True)],
        StatusCode.INVALID_ARGUMENT,
        "at most one image",
    ),
    "17 images": (
        lambda: [*head(), *(part for _ in range(17) for part in image(FRONT))],
        StatusCode.INVALID_ARGUMENT,
        "at most 16 images",
    ),
    "a name of two lines": (
        lambda: [*head(name="two\nlines"), *image(FRONT)],
        StatusCode.INVALID_ARGUMENT,
        "one line",
    ),
}


@pytest.fixture
async def bob(suite: Suite) -> Client:
    await suite.serve("assets", "pipeline")
    return suite.client("bob")


async def test_what_is_wrong_in_a_stream_is_named_and_leaves_nothing(
    suite: Suite, bob: Client
) -> None:
    for name, (stream, code, words) in BAD.items():
        await refused(upload(bob, stream()), code, words)
        assert await left(suite, bob) == NOTHING, name


async def test_a_stream_that_breaks_leaves_nothing(suite: Suite, bob: Client) -> None:
    broken = asyncio.Event()

    async def parts() -> AsyncIterator[Part]:
        for part in [*head(), *image(FRONT), *image(BACK)[:2]]:
            yield part
        broken.set()
        await asyncio.sleep(60)

    call = flows.products(bob).UploadProduct(parts())
    await broken.wait()
    for _ in range(100):
        if len(await assets_of(bob)) == 2:
            break
        await asyncio.sleep(0.05)
    call.cancel()
    for _ in range(200):
        if await left(suite, bob) == NOTHING:
            return
        await asyncio.sleep(0.05)
    assert await left(suite, bob) == NOTHING


async def test_what_a_dead_process_left_is_discarded_by_a_worker(suite: Suite, bob: Client) -> None:
    product = await upload(bob, head(), image(FRONT))
    orphan = flows.request_id()
    stub = bob.stub(asset_pb2_grpc.AssetServiceStub)
    stray = await asset_flows.upload(bob, BACK, scope={"product_id": orphan})
    young = flows.request_id()
    for draft, age in ((orphan, "7 hours"), (young, "5 hours")):
        await suite.change(
            "INSERT INTO pipeline.product_drafts VALUES (%s, 'user:bob', now() - %s::interval)",
            (draft, age),
        )
    await suite.work("pipeline")
    for _ in range(200):
        if suite.sql("SELECT id::text FROM pipeline.product_drafts") == [(young,)]:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the draft stays")
    gone = stub.GetAsset(asset_pb2.GetAssetRequest(asset_id=stray.id))
    await refused(gone, StatusCode.NOT_FOUND)
    assert [each.id for each in await assets_of(bob)] == [product.images[0].asset_id]


@pytest.mark.long
async def test_a_stream_that_waits_is_answered_before_its_deadline(bob: Client) -> None:
    parts = [*head(wait=True, run_phases_externally=[]), *image(FRONT)]
    answer = await flows.products(bob).UploadProduct(iter(parts), timeout=3)
    assert answer.product.state == product_pb2.PRODUCT_STATE_UPLOADED, "no worker is there"
