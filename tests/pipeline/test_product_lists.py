"""What lists and counts of products promise: each filter finds exactly what it says, pages hold
every product once, and operators see the products of the owner that they name."""

import uuid
from typing import Any

import pytest
from atelier.pipeline.v1 import product_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.assets import flows as assets
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

ERROR = product_pb2.PRODUCT_STATE_ERROR
REVIEW = product_pb2.PRODUCT_STATE_AWAITING_REVIEW
NONE = product_pb2.MARKET_PROVIDER_NONE
BOOK = product_pb2.MARKET_PROVIDER_PRICE_BOOK


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await own_suite.serve("assets", "pipeline")
    return own_suite


async def make(client: Client, *names: str, model: str = "", **fields: Any) -> list[str]:
    """Creates products without facts, and returns their ids."""
    image = str(uuid.uuid4())
    made = [
        await flows.create(client, image, stated={}, name=name, model=model, **fields)
        for name in names
    ]
    return [product.id for product in made]


async def find(client: Client, **fields: Any) -> list[str]:
    """Returns the names of the products that a list finds, over all pages of one."""
    found: list[str] = []
    token = ""
    while True:
        answer = await flows.products(client).ListProducts(
            product_pb2.ListProductsRequest(page_size=1, page_token=token, **fields)
        )
        found += [product.name for product in answer.products]
        token = answer.next_page_token
        if not token:
            return found


async def summary(client: Client, **fields: Any) -> product_pb2.GetSummaryResponse:
    answer: product_pb2.GetSummaryResponse = await flows.products(client).GetSummary(
        product_pb2.GetSummaryRequest(**fields)
    )
    return answer


def move(suite: Suite, product_id: str, state: str) -> None:
    suite.sql(
        "UPDATE pipeline.products SET state = %s, error_class = %s, running = false WHERE id = %s",
        (state, "MADE_UP" if state == "error" else "", product_id),
    )


async def test_words_find_names_and_models(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    await make(ada, "Canvas field jacket", model="KH-4107")
    await make(ada, "Übergangsjacke Straße", "Wool hat")
    long = "Donaudampfschifffahrtskapitän"
    await make(ada, long)
    await make(eve, "Canvas jacket of Eve")

    wanted = {
        "canvas": ["Canvas field jacket"],
        "jack CAN": ["Canvas field jacket"],
        "kh-41": ["Canvas field jacket"],
        "KH4107": ["Canvas field jacket"],
        "4107": ["Canvas field jacket"],
        "ubergang": [],
        "ÜBERGANG": ["Übergangsjacke Straße"],
        "acket": [],
        "canvas wool": [],
        "%": None,
        "_anvas": [],
        "donaudampfschifff": [long],
        "donaudampfschiffx": [],
        long: [long],
        "w": ["Wool hat"],
    }
    for text, names in wanted.items():
        if names is None:
            await refused(find(ada, text=text), StatusCode.INVALID_ARGUMENT, "no letter")
        else:
            assert await find(ada, text=text) == names, text
    await refused(find(ada, text="a b c d e f g h i"), StatusCode.INVALID_ARGUMENT, "9 words")
    nul = await refused(find(ada, text="a\x00"), StatusCode.INVALID_ARGUMENT, "NUL")
    assert nul.fields == ["text"]


async def test_words_follow_the_product(suite: Suite) -> None:
    ada = suite.client("ada")
    [coat] = await make(ada, "Coat")
    mask = {"paths": ["name"]}
    await flows.change(ada, "UpdateProduct", coat, name="Parka", update_mask=mask)
    assert await find(ada, text="coat") == [] and await find(ada, text="park") == ["Parka"]

    await flows.change(ada, "ArchiveProduct", coat)
    assert await find(ada, text="park") == []
    assert await find(ada, text="park", show_archived=True) == ["Parka"]
    await flows.change(ada, "DeleteProduct", coat)
    assert await find(ada, text="park", show_archived=True) == []
    assert await find(ada, text="park", show_deleted=True) == ["Parka"]
    await flows.change(ada, "UndeleteProduct", coat)
    await flows.change(ada, "UnarchiveProduct", coat)
    assert await find(ada, text="park") == ["Parka"]


async def test_filters_find_what_they_say_alone_and_together(suite: Suite) -> None:
    ada = suite.client("ada")
    ids = await make(ada, "Coat 1", "Coat 2", "Coat 3", "Hat 4")
    [unbooked] = await make(ada, "Coat 5", market_provider=NONE)
    move(suite, ids[0], "error")
    move(suite, ids[1], "awaiting_review")
    move(suite, unbooked, "awaiting_review")
    await flows.change(ada, "ArchiveProduct", ids[2])

    everything = ["Coat 5", "Hat 4", "Coat 2", "Coat 1"]
    assert await find(ada) == everything
    assert await find(ada, show_archived=True) == [*everything[:2], "Coat 3", *everything[2:]]
    assert await find(ada, state=ERROR) == ["Coat 1"]
    assert await find(ada, requires_review=True) == ["Coat 5", "Coat 2"]
    assert await find(ada, requires_review=True, state=REVIEW) == ["Coat 5", "Coat 2"]
    assert await find(ada, requires_review=True, state=ERROR) == []
    assert await find(ada, requires_review=True, state=ERROR, text="coat") == []
    assert await find(ada, text="coat") == ["Coat 5", "Coat 2", "Coat 1"]
    assert await find(ada, text="coat", show_archived=True) == [
        "Coat 5",
        "Coat 3",
        "Coat 2",
        "Coat 1",
    ]
    assert await find(ada, text="coat", state=ERROR) == ["Coat 1"]
    assert await find(ada, text="coat", requires_review=True) == ["Coat 5", "Coat 2"]
    assert await find(ada, market_provider=NONE) == ["Coat 5"]
    assert await find(ada, market_provider=BOOK) == everything[1:]
    assert await find(ada, market_provider=BOOK, text="coat 2") == ["Coat 2"]
    assert await find(ada, text="coat", skip=1) == ["Coat 2", "Coat 1"]

    move(suite, ids[0], "processing")
    assert await find(ada, text="coat", state=ERROR) == []
    assert await find(ada, text="1", state=product_pb2.PRODUCT_STATE_PROCESSING) == ["Coat 1"]


async def test_dates_narrow_lists_and_counts(suite: Suite) -> None:
    ada = suite.client("ada")
    old, new = await make(ada, "Old coat", "New coat")
    suite.sql("UPDATE pipeline.products SET created_at = '2020-01-01' WHERE id = %s", (old,))
    suite.sql("UPDATE pipeline.product_terms SET created_at = '2020-01-01' WHERE id = %s", (old,))
    at = Timestamp(seconds=1_600_000_000)
    assert await find(ada, created_before=at) == await find(ada, text="coat", created_before=at)
    assert (
        await find(ada, created_from=at)
        == ["New coat"]
        == await find(ada, text="coat", created_from=at)
    )
    assert (await summary(ada, created_before=at)).total_products == 1
    assert (await summary(ada, created_from=at, created_before=at)).total_products == 0
    assert new


async def test_the_summary_counts_each_product_once(suite: Suite) -> None:
    ada = suite.client("ada")
    states = ["uploaded", "processing", "awaiting_review", "completed", "error", "stopped"]
    ids = await make(ada, *states, "archived", "deleted", "both")
    for state, product_id in zip(states, ids, strict=False):
        move(suite, product_id, state)
    suite.sql("UPDATE pipeline.products SET running = true WHERE id = %s", (ids[1],))
    for product_id in (ids[-3], ids[-1]):
        await flows.change(ada, "ArchiveProduct", product_id)
    for product_id in ids[-2:]:
        await flows.change(ada, "DeleteProduct", product_id)
    assert await summary(ada) == product_pb2.GetSummaryResponse(
        total_products=6,
        active_pipelines=1,
        uploaded_products=1,
        processing_products=1,
        awaiting_review_products=1,
        completed_products=1,
        error_products=1,
        stopped_products=1,
        archived_products=1,
        deleted_products=2,
    )


async def test_operators_name_the_owner_and_others_only_see_their_own(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    admin = suite.client("root", "admin")
    [coat] = await make(ada, "Coat")
    assert await find(admin, owner="user:ada") == ["Coat"] == await find(ada, owner="user:ada")
    assert await find(admin, owner="user:ada", text="coat") == ["Coat"]
    assert await find(admin) == [] == await find(admin, owner="user:eve")
    assert (await summary(admin, owner="user:ada")).total_products == 1
    assert (await flows.get(admin, coat, owner="user:ada")).product.name == "Coat"

    await refused(find(eve, owner="user:ada"), StatusCode.NOT_FOUND)
    await refused(summary(eve, owner="user:ada"), StatusCode.NOT_FOUND)
    await refused(flows.get(eve, coat, owner="user:ada"), StatusCode.NOT_FOUND)
    await refused(flows.get(admin, coat), StatusCode.NOT_FOUND)
    urls = find(admin, owner="user:ada", include_urls=True)
    assert (await refused(urls, StatusCode.INVALID_ARGUMENT)).fields == ["include_urls"]
    await refused(flows.change(admin, "DeleteProduct", coat), StatusCode.PERMISSION_DENIED)


async def test_a_token_is_of_one_list(suite: Suite) -> None:
    ada = suite.client("ada")
    await make(ada, "Coat 1", "Coat 2")
    first = await flows.products(ada).ListProducts(
        product_pb2.ListProductsRequest(page_size=1, text="coat")
    )
    other = flows.products(ada).ListProducts(
        product_pb2.ListProductsRequest(page_token=first.next_page_token, text="coa")
    )
    refusal = await refused(other, StatusCode.INVALID_ARGUMENT)
    assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_primary_images_of_found_products_have_urls(suite: Suite) -> None:
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    await flows.create(ada, asset.id, stated={}, name="Coat")
    request = product_pb2.ListProductsRequest(text="coat", include_urls=True)
    [product] = (await flows.products(ada).ListProducts(request)).products
    assert product.images[0].image_url and len(product.phases) == 4
