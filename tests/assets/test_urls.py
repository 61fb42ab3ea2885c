"""URLs on a disk and on S3 alike: public ones are stable, hashed and cached for good, private ones
signed and short-lived; content that could run is never shown in place."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
from atelier.assets.v1 import asset_pb2

from tests import versitygw
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, browser, running_suite

DATA = flows.jpeg(640, 480)
PUBLIC, PRIVATE = asset_pb2.VISIBILITY_PUBLIC, asset_pb2.VISIBILITY_PRIVATE
FOREVER = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module", params=["disk", pytest.param("s3", marks=pytest.mark.needs_go)])
async def suite(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    keys: Keys,
    disk: DiskServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Suite]:
    """Runs a suite of its own on each kind of store."""
    async with running_suite(cluster, keys, disk) as suite:
        if request.param == "disk":
            await suite.serve("assets")
            await suite.work("assets")
            yield suite
            return
        with versitygw.running(tmp_path_factory.mktemp("urls")) as gateway:
            suite.overrides |= {
                "storage": "s3",
                "s3_endpoint": gateway.endpoint,
                "s3_bucket": gateway.bucket,
                "s3_access_key": gateway.access_key,
                "s3_secret_key": gateway.secret_key,
            }
            await suite.serve("assets")
            await suite.work("assets")
            yield suite
            await suite.close()


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client("ada")


async def fetched(url: str, **headers: str) -> httpx.Response:
    async with browser() as http:
        return await http.get(url, headers=headers)


@pytest.mark.long
async def test_a_public_files_url_is_stable_names_its_content_and_is_cached_for_good(
    suite: Suite, ada: Client
) -> None:
    for declared in ({}, {"sha256": ""}):
        asset = await flows.upload(ada, DATA, visibility=PUBLIC, **declared)
        variants = await flows.variants_of(ada, asset.id)
        shown = await flows.get(ada, asset.id, include_urls=True)
        again = await flows.get(suite.client("bob"), asset.id, include_urls=True)
        assert (
            shown.original_url == again.original_url and shown.thumbnail_url == again.thumbnail_url
        )

        thumb = variants["thumb"]
        for url, sha256 in (
            (shown.original_url, asset.sha256),
            (shown.thumbnail_url, thumb.sha256),
        ):
            parts = urlsplit(url)
            assert sha256[:16] in parts.path and not parts.query, "no signature that would change"
            answer = await fetched(url)
            assert answer.status_code == 200 and answer.headers["cache-control"] == FOREVER
            assert answer.headers.get("content-disposition", "inline").startswith("inline")
        assert (await fetched(shown.original_url)).content == DATA
        assert (await fetched(shown.original_url)).headers["content-type"] == "image/jpeg"


async def test_one_call_makes_a_hashed_public_url_too(suite: Suite, ada: Client) -> None:
    from atelier.assets.v1 import upload_pb2

    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA, visibility=PUBLIC))
    asset = await flows.stream_upload(ada, head, DATA)
    url = (await flows.get(ada, asset.id, include_urls=True)).original_url
    assert asset.sha256[:16] in url and (await fetched(url)).content == DATA
    folder = asset.file_path.rpartition("/")[0]
    kept = [
        path for path in suite.storage.root.rglob("*") if folder in str(path) and path.is_file()
    ]
    assert len(kept) <= 1, "the name before the hash was known is gone"


async def test_making_a_file_public_and_private_again_moves_its_url(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.variants_of(ada, asset.id)
    await flows.update(ada, asset.id, visibility=PUBLIC)
    public = await flows.get(ada, asset.id, include_urls=True)
    assert asset.sha256[:16] in urlsplit(public.original_url).path
    assert (await fetched(public.original_url)).headers["cache-control"] == FOREVER
    assert (await fetched(asset.original_url)).status_code == 404, "the private place is empty"

    await flows.update(ada, asset.id, visibility=PRIVATE)
    assert (await fetched(public.original_url)).status_code in (403, 404)
    assert (await fetched(public.thumbnail_url)).status_code in (403, 404)


async def test_what_could_run_is_a_download_also_when_it_is_public(
    suite: Suite, ada: Client
) -> None:
    document = {
        "kind": asset_pb2.ASSET_KIND_DOCUMENT,
        "mime_type": "application/pdf",
        "file_name": "Plan ü.pdf",
    }

    for visibility in (PUBLIC, PRIVATE):
        asset = await flows.upload(ada, pictures.pdf(), visibility=visibility, **document)
        answer = await fetched(asset.original_url)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/pdf"
        disposition = answer.headers["content-disposition"]
        assert disposition.startswith("attachment"), visibility
        assert visibility == PUBLIC or "Plan%20%C3%BC.pdf" in disposition


async def test_a_private_url_is_signed_named_and_answers_ranges(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA, file_name="Front ü.jpg")
    answer = await fetched(asset.original_url)
    assert (
        answer.headers["content-disposition"].startswith("inline")
        and "%C3%BC" in answer.headers["content-disposition"]
    )
    assert "immutable" not in answer.headers.get("cache-control", "")

    part = await fetched(asset.original_url, Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, DATA[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(DATA)}"

    parts = urlsplit(asset.original_url)
    assert (await fetched(parts._replace(query="").geturl())).status_code in (403, 404)
    if "storage" not in suite.overrides:  # S3 sends no header of ours; a CDN in front adds it
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_cdn_stands_in_public_urls_only(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    private = await flows.upload(ada, DATA)
    await suite.stop("assets")
    suite.overrides["public_url"] = "https://cdn.example.com/files"

    try:
        await suite.serve("assets")
        client = suite.client("ada")
        shown = await flows.get(client, asset.id, include_urls=True)

        path = urlsplit(shown.original_url).path
        assert shown.original_url.startswith("https://cdn.example.com/files/public/assets/")
        assert path.removeprefix("/files/") == asset.file_path
        assert (
            "cdn.example.com"
            not in (await flows.get(client, private.id, include_urls=True)).original_url
        )
    finally:
        del suite.overrides["public_url"]
        await suite.stop("assets")
        await suite.serve("assets")
