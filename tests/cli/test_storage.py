"""`atelier storage` copies everything to another store, and prints a report for people."""

import asyncio
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cli.state import State
from shared.storage import ObjectNotFound, Storage, open_disk, open_s3
from tests import versitygw
from tests.assets import flows, storage
from tests.suite import ROOT, Suite, browser

COUNT = 60


def environment(gateway: versitygw.Gateway | None = None, **more: str) -> dict[str, str]:
    keys = {}
    if gateway:
        pair = {"ACCESS_KEY": gateway.access_key, "SECRET_KEY": gateway.secret_key}
        keys = {
            f"ATELIER_{side}_S3_{name}": value
            for side in ("FROM", "TO")
            for name, value in pair.items()
        }
    own = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    return {**own, "COLUMNS": "160", **keys, **more}


def start(gateway: versitygw.Gateway | None, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [ROOT / "atelier", "storage", "copy", *arguments],
        env=environment(gateway),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def copy(gateway: versitygw.Gateway | None, *arguments: str) -> tuple[int, str, str]:
    """Runs `copy`; returns exit status, standard output and standard error."""
    process = start(gateway, *arguments)
    said, errors = process.communicate(timeout=60)
    return process.returncode, said, errors


def s3(gateway: versitygw.Gateway) -> str:
    return f"s3://{gateway.bucket}?endpoint={gateway.endpoint}&region={gateway.region}"


def disk(root: Path) -> Storage:
    return open_disk(root, base_url="http://127.0.0.1", secret=bytes(32))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[versitygw.Gateway]:
    with versitygw.running(tmp_path / "s3") as made:
        yield made


@pytest.fixture
async def bucket(gateway: versitygw.Gateway) -> AsyncIterator[Storage]:
    opened = open_s3(
        endpoint=gateway.endpoint,
        public_endpoint=None,
        bucket=gateway.bucket,
        region=gateway.region,
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
    )
    yield opened
    await opened.close()


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (number * 37 + 1)


def key(number: int) -> str:
    return f"assets/user%3Aada/{number % 7}/photo {number} ü.jpg"


async def fill(store: Storage, count: int = COUNT) -> None:
    for number in range(count):
        kind = "application/pdf" if number % 5 == 0 else "image/jpeg"
        await store.put(key(number), content(number), content_type=kind)
    await store.put("public/assets/x/large", bytes(9 * 1024 * 1024), content_type="image/png")


async def objects(store: Storage) -> dict[str, tuple[str, str]]:
    """Returns digest and type by key, of the bytes as they are read."""
    found = {}
    async for stat in store.list(""):
        digest = hashlib.sha256()
        async for chunk in store.get(stat.key):
            digest.update(chunk)
        found[stat.key] = digest.hexdigest(), (await store.stat(stat.key)).content_type
    return found


@pytest.mark.long
@pytest.mark.needs_go
async def test_everything_moves_from_a_disk_to_s3_and_back(
    tmp_path: Path, gateway: versitygw.Gateway, bucket: Storage
) -> None:
    there, back = disk(tmp_path / "there"), disk(tmp_path / "back")
    await fill(there)
    status, said, errors = await asyncio.to_thread(
        copy, gateway, "--from", f"disk:{tmp_path}/there", "--to", s3(gateway)
    )
    assert (status, said.partition(" copied")[0]) == (0, str(COUNT + 1)), errors
    assert await objects(bucket) == await objects(there)
    # An object that a browser sent to S3 has no recorded digest: it is read to be compared.
    form = bucket.sign_put(
        "assets/sent", length=3, content_type="image/png", expires_in=timedelta(minutes=1)
    )

    async with browser() as http:
        assert (await http.put(form.url, content=b"abc", headers=form.headers)).status_code == 200
    assert (await bucket.stat("assets/sent")).sha256 is None
    arguments = ("--from", s3(gateway), "--to", f"disk:{tmp_path}/back", "--verify")
    status, said, errors = await asyncio.to_thread(copy, gateway, *arguments)
    assert (status, said.partition(" copied")[0]) == (0, str(COUNT + 2)), errors
    assert await objects(back) == await objects(bucket)
    status, said, errors = await asyncio.to_thread(copy, gateway, *arguments[:4])
    assert (
        status == 0 and f"0 copied (0 bytes), {COUNT + 2} were there already, 0 failed" in said
    ), errors
    for store in (there, back):
        await store.close()


@pytest.mark.faults
@pytest.mark.needs_go
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
async def test_a_copy_that_was_broken_off_goes_on(
    tmp_path: Path, gateway: versitygw.Gateway, bucket: Storage, sent: signal.Signals
) -> None:
    there = disk(tmp_path / "there")
    await fill(there, 300)
    arguments = ("--from", f"disk:{tmp_path}/there", "--to", s3(gateway), "--concurrency", "2")
    process = start(gateway, *arguments)
    folder = tmp_path / "s3/objects" / gateway.bucket / "assets"
    async with asyncio.timeout(30):
        while len(list(folder.rglob("*.jpg"))) < 20:
            await asyncio.sleep(0.02)
    process.send_signal(sent)
    said, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == (130 if sent == signal.SIGINT else -sent)
    assert ("same command again" in errors) == (sent == signal.SIGINT)

    moved = len(await objects(bucket))
    assert 20 <= moved < 301, "it was in the middle"
    status, said, errors = await asyncio.to_thread(copy, gateway, *arguments)
    assert status == 0, errors
    assert f", {moved} were there already, 0 failed" in said
    assert await objects(bucket) == await objects(there)
    await there.close()


@pytest.mark.long
async def test_damage_is_named_and_the_rest_is_copied(tmp_path: Path) -> None:
    there, back = disk(tmp_path / "there"), disk(tmp_path / "back")
    await fill(there, 10)
    flipped, short = (tmp_path / "there/data" / key(number) for number in (3, 4))
    data = bytearray(flipped.read_bytes())
    data[0] ^= 1
    flipped.write_bytes(bytes(data))
    short.write_bytes(short.read_bytes()[:50])
    arguments = ("--from", f"disk:{tmp_path}/there", "--to", f"disk:{tmp_path}/back")
    status, said, errors = copy(None, *arguments)
    assert status == 1 and "9 copied" in said and "2 failed" in said
    assert (
        f"not copied: {key(3)}" in errors
        and f"not copied: {key(4)}" in errors
        and "Traceback" not in errors
    )

    for number in (3, 4):
        with pytest.raises(ObjectNotFound):
            await back.stat(key(number))
    for store in (there, back):
        await store.close()


@pytest.mark.long
async def test_reading_back_finds_and_mends_what_is_damaged_in_the_target(tmp_path: Path) -> None:
    there, back = disk(tmp_path / "there"), disk(tmp_path / "back")
    await fill(there, 3)
    arguments = ("--from", f"disk:{tmp_path}/there", "--to", f"disk:{tmp_path}/back")
    assert copy(None, *arguments)[0] == 0

    damaged = tmp_path / "back/data" / key(2)
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    status, said, _ = copy(None, *arguments, "--verify")
    assert status == 0 and "1 copied" in said and "3 were there already" in said
    assert await objects(back) == await objects(there)

    for store in (there, back):
        await store.close()


@pytest.mark.long
async def test_what_comes_and_goes_meanwhile_is_no_failure_and_a_second_pass_brings_it(
    tmp_path: Path,
) -> None:
    there, back = disk(tmp_path / "there"), disk(tmp_path / "back")
    await fill(there, 200)
    arguments = (
        "--from",
        f"disk:{tmp_path}/there",
        "--to",
        f"disk:{tmp_path}/back",
        "--concurrency",
        "1",
    )
    process = start(None, *arguments)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "back/data").rglob("*.jpg")) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await there.delete([key(n) for n in range(200) if n % 7 == 6])
    await there.put("assets/new", b"new", content_type="image/png")
    said, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0 and "0 failed" in said, errors

    status, said, errors = await asyncio.to_thread(copy, None, *arguments)
    assert status == 0, errors
    copied = await objects(back)
    assert {**copied, **await objects(there)} == copied

    for store in (there, back):
        await store.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("disk:/nowhere", "disk:/tmp/x", "no folder"),
        ("ftp://x", "disk:/tmp/x", "names no store"),
        ("s3://bucket", "disk:/tmp/x", "ATELIER_FROM_S3_ACCESS_KEY"),
    ],
)
def test_a_store_that_is_not_one_is_one_line(source: str, target: str, named: str) -> None:
    status, _, errors = copy(None, "--from", source, "--to", target)
    assert status == 2 and named in errors and "Traceback" not in errors


def report(suite: Suite, token: str | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    given = {"ATELIER_TOKEN": token} if token else {}
    return subprocess.run(
        [ROOT / "atelier", "storage", "report", "--address", suite.addresses["assets"], *arguments],
        env=environment(None, **given),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.long
async def test_the_report_tells_a_person_what_is_stored_and_what_it_costs(suite: Suite) -> None:
    await suite.serve("assets")
    await suite.work("assets")
    ada, admin = suite.client("ada"), suite.client("root", "admin")
    await storage.set_quota(admin, "user:ada", stored_bytes=1_000_000)
    asset = await flows.upload(ada, flows.jpeg(64, 48), scope={"session_id": "visit"})
    await flows.variants_of(ada, asset.id)
    await storage.folded(suite)
    answer = await asyncio.to_thread(report, suite, admin.token, "--months", "3")
    assert answer.returncode == 0, answer.stderr
    for words in (
        "Storage of the deployment",
        "product",
        "image/jpeg",
        "variant thumb",
        "No alert fires",
        "user:ada",
        "supabase",
        "in 3 months",
        "No threshold for moving from supabase",
    ):
        assert words in answer.stdout, words

    mine = await asyncio.to_thread(report, suite, ada.token)
    assert mine.returncode == 0 and "Storage of user:ada" in mine.stdout
    assert "quota: stored bytes" in mine.stdout and "visit" in mine.stdout

    refused = await asyncio.to_thread(report, suite, "x")
    assert (
        refused.returncode == 1
        and "UNAUTHENTICATED" in refused.stderr
        and "Traceback" not in refused.stderr
    )


@pytest.mark.long
async def test_on_the_suites_own_machine_the_report_needs_no_token(
    suite: Suite, tmp_path: Path
) -> None:
    state = State(tmp_path / "state")
    state.prepare()
    suite.overrides["trust_file"] = state.trust_file
    await suite.serve("assets")
    answer = await asyncio.to_thread(report, suite, None, "--state", str(state.directory))
    assert answer.returncode == 0 and "Storage of the deployment" in answer.stdout, answer.stderr
