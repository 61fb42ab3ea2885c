"""What signed and public URLs promise to a browser: the same tests, over real sockets, against each
real store."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import httpx
import pytest

from shared.storage import InvalidKey, ObjectNotFound, SignedPost, SignedPut, Storage

HOUR = timedelta(hours=1)
KIB = 1024


async def post(http: httpx.AsyncClient, form: SignedPost, data: bytes) -> httpx.Response:
    return await http.post(
        form.url, data=form.fields, files={"file": ("C:\\fake\\photo.png", data, "text/html")}
    )


async def put(http: httpx.AsyncClient, signed: SignedPut, data: bytes) -> httpx.Response:
    return await http.put(signed.url, headers=signed.headers, content=data)


def with_query(url: str, **changes: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **changes})))


def flipped(text: str) -> str:
    """Returns the text with another last character."""
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def signature_of(url: str) -> dict[str, str]:
    return {
        name: value
        for name, value in parse_qsl(urlsplit(url).query)
        if name.lower().endswith("signature")
    }


async def is_absent(storage: Storage, key: str) -> bool:
    try:
        await storage.stat(key)
    except ObjectNotFound:
        return True
    return False


async def test_a_signed_url_reads_the_object(
    storage: Storage, http: httpx.AsyncClient, key: str
) -> None:
    await storage.put(key, b"picture" * 1000, content_type="image/png")
    answer = await http.get(storage.sign_get(key, expires_in=HOUR))
    assert (answer.status_code, answer.content) == (200, b"picture" * 1000)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["etag"].strip('"') == (await storage.stat(key)).etag


async def test_odd_keys_have_working_urls(
    storage: Storage, http: httpx.AsyncClient, folder: str
) -> None:
    for end in ("a%2Fb", "a+b c", "a?b#c&d=e", "é", "ａ~(1)!*'"):
        await storage.put(folder + end, end.encode(), content_type="image/png")
        assert (
            await http.get(storage.sign_get(folder + end, expires_in=HOUR))
        ).content == end.encode()


async def test_a_range_of_a_signed_url(storage: Storage, http: httpx.AsyncClient, key: str) -> None:
    await storage.put(key, bytes(range(100)), content_type="image/png")
    url = storage.sign_get(key, expires_in=HOUR)

    for header, first, last in (
        ("bytes=10-19", 10, 19),
        ("bytes=90-", 90, 99),
        ("bytes=-5", 95, 99),
        ("bytes=99-500", 99, 99),
    ):
        answer = await http.get(url, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, bytes(range(first, last + 1)))
        assert answer.headers["content-range"] == f"bytes {first}-{last}/100"
    assert (await http.get(url, headers={"Range": "bytes=100-"})).status_code == 416


async def test_an_unchanged_object_is_not_sent_again(
    storage: Storage, http: httpx.AsyncClient, key: str
) -> None:
    await storage.put(key, b"x", content_type="image/png")
    url = storage.sign_get(key, expires_in=HOUR)
    etag = (await http.get(url)).headers["etag"]
    assert (await http.get(url, headers={"If-None-Match": etag})).status_code == 304
    await storage.put(key, b"y", content_type="image/png")
    assert (await http.get(url, headers={"If-None-Match": etag})).status_code == 200


@pytest.mark.parametrize(
    ("name", "plain", "exact"),
    [
        ("front.jpg", "front.jpg", None),
        ("Größe 100%.jpg", "Gr__e 100_.jpg", "Größe 100%.jpg"),
        ("正面 “x”.png", "__ _x_.png", "正面 “x”.png"),
        ('a"b;c.png', "a_b_c.png", "a_b;c.png"),
        ("../../etc/passwd\r\nX-Evil: 1", "_.._etc_passwdX-Evil_ 1", None),
    ],
)
async def test_a_file_keeps_its_name(
    storage: Storage, http: httpx.AsyncClient, key: str, name: str, plain: str, exact: str | None
) -> None:
    await storage.put(key, b"x", content_type="image/png")
    answer = await http.get(storage.sign_get(key, expires_in=HOUR, file_name=name))
    expected = f'attachment; filename="{plain}"'
    if exact:
        expected += f"; filename*=UTF-8''{quote(exact, safe='')}"
    assert answer.headers["content-disposition"] == expected
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("stored", "told", "disposition"),
    [
        ("image/png", "image/png", "inline"),
        ("image/png", None, "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("application/pdf", "application/pdf", "attachment"),
        ("image/png", "text/html", "attachment"),
    ],
)
async def test_only_a_raster_image_is_shown_in_place(
    storage: Storage,
    http: httpx.AsyncClient,
    key: str,
    stored: str,
    told: str | None,
    disposition: str,
) -> None:
    await storage.put(key, b"x", content_type=stored)
    answer = await http.get(storage.sign_get(key, expires_in=HOUR, content_type=told, inline=True))
    assert answer.headers["content-disposition"] == disposition
    assert answer.headers["content-type"] == (told or stored)


async def test_a_url_is_for_one_object_one_method_and_as_signed(
    storage: Storage, http: httpx.AsyncClient, key: str, new_key: Callable[[], str]
) -> None:
    other = new_key()
    for each in (key, other):
        await storage.put(each, b"secret", content_type="image/png")
    url = storage.sign_get(key, expires_in=HOUR, file_name="a.png")
    signature = signature_of(url)
    assert len(signature) == 1

    (name, value), *_ = signature.items()
    refused = [
        url.replace(quote(key), quote(other)),
        with_query(url, **{name: flipped(value)}),
        with_query(url, **{name: ""}),
        with_query(url, **{"name": "b.png", "response-content-disposition": "inline"}),
        with_query(url, **{"expires": "99999999999", "X-Amz-Expires": "86400"}),
        url.split("?")[0],
    ]
    for changed in refused:
        answer = await http.get(changed)
        assert answer.status_code in (400, 403), changed
        assert b"secret" not in answer.content
    assert (await http.put(url, content=b"overwritten")).status_code == 403
    assert (await http.get(url)).content == b"secret"


@pytest.mark.long
async def test_what_has_expired_is_refused(
    storage: Storage, http: httpx.AsyncClient, new_key: Callable[[], str]
) -> None:
    key, posted, sent = new_key(), new_key(), new_key()
    await storage.put(key, b"x", content_type="image/png")
    life = timedelta(seconds=1)
    url = storage.sign_get(key, expires_in=life)
    form = storage.sign_post(posted, max_bytes=10, content_type="image/png", expires_in=life)
    signed = storage.sign_put(sent, length=1, content_type="image/png", expires_in=life)
    assert form.expires_at <= datetime.now(UTC) + life

    await asyncio.sleep(2.1)
    assert (await http.get(url)).status_code == 403
    assert (await post(http, form, b"x")).status_code == 403
    assert (await put(http, signed, b"x")).status_code == 403
    assert await is_absent(storage, posted)
    assert await is_absent(storage, sent)


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-1), timedelta(days=8)])
async def test_a_life_that_no_store_grants_is_refused(
    storage: Storage, key: str, life: timedelta
) -> None:
    with pytest.raises(ValueError):
        storage.sign_get(key, expires_in=life)


async def test_a_form_uploads_a_file(storage: Storage, http: httpx.AsyncClient, key: str) -> None:
    data = bytes(range(256)) * 4 * KIB
    form = storage.sign_post(key, max_bytes=len(data), content_type="image/png", expires_in=HOUR)
    assert storage.supports_post
    assert (await post(http, form, data)).status_code == 204
    found = await storage.stat(key)
    assert (found.size, found.content_type) == (len(data), "image/png")
    assert b"".join([chunk async for chunk in storage.get(key)]) == data


async def test_a_form_works_again_until_it_expires(
    storage: Storage, http: httpx.AsyncClient, key: str
) -> None:
    form = storage.sign_post(key, max_bytes=10, content_type="image/png", expires_in=HOUR)
    assert (await post(http, form, b"first")).status_code == 204
    assert (await post(http, form, b"too large for this")).status_code in (400, 413)
    assert [chunk async for chunk in storage.get(key)] == [b"first"]
    assert (await post(http, form, b"second")).status_code == 204
    assert [chunk async for chunk in storage.get(key)] == [b"second"]


@pytest.mark.parametrize("size", [0, KIB + 1, 20 * KIB * KIB])
async def test_a_form_takes_no_other_size(
    storage: Storage, http: httpx.AsyncClient, key: str, size: int
) -> None:
    form = storage.sign_post(key, max_bytes=KIB, content_type="image/png", expires_in=HOUR)
    assert (await post(http, form, b"x" * size)).status_code in (400, 413)
    assert await is_absent(storage, key)
    assert await storage.sweep(timedelta(seconds=-5)) == 0


async def test_a_form_is_taken_only_as_signed(
    storage: Storage, http: httpx.AsyncClient, key: str, new_key: Callable[[], str]
) -> None:
    form = storage.sign_post(key, max_bytes=KIB, content_type="image/png", expires_in=HOUR)
    larger = storage.sign_post(key, max_bytes=KIB * KIB, content_type="image/png", expires_in=HOUR)
    other = new_key()
    (signature,) = (name for name in form.fields if name.lower().endswith("signature"))

    changes: list[dict[str, str]] = [
        {"key": other},
        {"Content-Type": "text/html"},
        {signature: flipped(form.fields[signature])},
        {signature: ""},
        {"policy": larger.fields["policy"]},
        {"policy": base64.b64encode(b"{}").decode()},
    ]
    for change in changes:
        changed = dataclasses.replace(form, fields={**form.fields, **change})
        assert (await post(http, changed, b"x")).status_code in (400, 403), change
    for name in form.fields:
        changed = dataclasses.replace(
            form, fields={each: form.fields[each] for each in form.fields if each != name}
        )
        assert (await post(http, changed, b"x")).status_code in (400, 403), name
    assert await is_absent(storage, key)
    assert await is_absent(storage, other)


async def test_a_put_stores_exactly_what_was_signed(
    storage: Storage, http: httpx.AsyncClient, key: str
) -> None:
    signed = storage.sign_put(key, length=5, content_type="image/webp", expires_in=HOUR)
    assert (await put(http, signed, b"12345")).status_code == 200
    found = await storage.stat(key)
    assert (found.size, found.content_type) == (5, "image/webp")


async def test_a_put_is_taken_only_as_signed(
    storage: Storage, http: httpx.AsyncClient, key: str, new_key: Callable[[], str]
) -> None:
    signed = storage.sign_put(key, length=5, content_type="image/webp", expires_in=HOUR)
    other = new_key()
    (name, value), *_ = signature_of(signed.url).items()

    attempts: list[tuple[str, dict[str, str], bytes]] = [
        (signed.url, {"Content-Type": "image/webp"}, b"1234"),
        (signed.url, {"Content-Type": "image/webp"}, b"123456"),
        (signed.url, {"Content-Type": "image/webp"}, b"x" * 1_000_000),
        (signed.url, {"Content-Type": "text/html"}, b"12345"),
        (signed.url.replace(quote(key), quote(other)), {"Content-Type": "image/webp"}, b"12345"),
        (
            with_query(signed.url, **{name: flipped(value)}),
            {"Content-Type": "image/webp"},
            b"12345",
        ),
        (with_query(signed.url, length="6"), {"Content-Type": "image/webp"}, b"123456"),
    ]
    for url, headers, data in attempts:
        assert (await http.put(url, headers=headers, content=data)).status_code in (403, 413)
    assert await is_absent(storage, key)
    assert await is_absent(storage, other)


async def test_public_objects_are_read_without_a_signature_and_kept_forever(
    storage: Storage, http: httpx.AsyncClient, folder: str
) -> None:
    key = f"public/{folder}é 1"
    await storage.put(folder + "private", b"picture", content_type="image/png")
    await storage.copy(folder + "private", key)

    url = storage.public_url(key)
    assert url == storage.public_url(key)
    for _ in range(2):
        answer = await http.get(url)
        assert (answer.status_code, answer.content) == (200, b"picture")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers.get("content-disposition", "inline") == "inline"
    assert (await http.get(storage.sign_get(key, expires_in=HOUR))).content == b"picture"


async def test_a_public_object_that_could_run_is_a_download(
    storage: Storage, http: httpx.AsyncClient, folder: str
) -> None:
    await storage.put(f"public/{folder}svg", b"<svg/>", content_type="image/svg+xml")
    assert (await http.get(storage.public_url(f"public/{folder}svg"))).headers[
        "content-disposition"
    ] == "attachment"


async def test_only_public_keys_are_public(
    storage: Storage, http: httpx.AsyncClient, folder: str
) -> None:
    public = f"public/{folder}x"
    await storage.put(folder + "x", b"secret", content_type="image/png")

    with pytest.raises(InvalidKey):
        storage.public_url(folder + "x")
    with pytest.raises(InvalidKey):
        storage.public_url("publicity/x")
    assert (await http.get(storage.public_url(public).replace("public/", "", 1))).status_code == 403
    assert (await http.put(storage.public_url(public), content=b"x")).status_code == 403
    assert await is_absent(storage, public)


@pytest.mark.parametrize(
    ("forever", "expected"),
    [(False, "private, no-cache"), (True, "private, max-age=31536000, immutable")],
)
async def test_a_private_object_is_cached_as_told(
    storage: Storage,
    http: httpx.AsyncClient,
    new_key: Callable[[], str],
    forever: bool,
    expected: str,
) -> None:
    key, copied = new_key(), new_key()
    await storage.put(key, b"x", content_type="image/png", cache_forever=forever)
    await storage.copy(key, copied)
    for each in (key, copied):
        assert (await http.get(storage.sign_get(each, expires_in=HOUR))).headers[
            "cache-control"
        ] == expected


async def test_what_is_signed_is_not_printed(storage: Storage, key: str) -> None:
    form = storage.sign_post(key, max_bytes=10, content_type="image/png", expires_in=HOUR)
    signed = storage.sign_put(key, length=1, content_type="image/png", expires_in=HOUR)
    assert "ignature" not in repr(form)
    assert "ignature" not in repr(signed)
