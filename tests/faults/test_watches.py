"""Watches across restarts and cut connections, while writers commit out of order: nothing is
missed, repeated or reordered."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from uuid import UUID

import grpc
import pytest
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc

from services.assets.core import asset_rows
from shared.background.events import prune_events
from shared.database.db import Database
from shared.database.rows import Statement
from shared.settings import Settings, load
from tests.assets.flows import request_id
from tests.calls import refused
from tests.faults.processes import Process, Processes, Superuser, until
from tests.suite import APP_PASSWORD, WORKER_PASSWORD, Client

pytestmark = pytest.mark.faults

OWNER = "user:ada"
RESTARTS = 20
SUBJECTS = 12
STAMPED = "SELECT bool_and(position IS NOT NULL) FROM assets.events"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test opened, however the test ends."""
    async with AsyncExitStack() as made:
        yield made


class Cable:
    """Carries bytes between clients and a server until it is cut, which resets every connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server
        self._server.close()
        self.cut()
        await self._server.wait_closed()


class Follower:
    """A watch that resumes from its cursor after every end. `seen` has (asset id, version) in order
    of arrival."""

    def __init__(self, client: Client, wanted: list[str]) -> None:
        self._stub = client.stub(asset_pb2_grpc.AssetServiceStub)
        self._wanted = wanted
        self.cursor = ""
        self.ready = asyncio.Event()
        self.seen: list[tuple[str, int]] = []
        self.ends: list[str] = []
        self.task = asyncio.create_task(self._follow())

    async def saw(self, count: int) -> bool:
        return len(self.seen) >= count

    async def _follow(self) -> None:
        while True:
            request = pb.WatchAssetsRequest(cursor=self.cursor, asset_ids=self._wanted)
            watch = self._stub.WatchAssets(request)
            try:
                async for item in watch:
                    if item.HasField("asset") and item.cursor:
                        self.seen.append((item.asset.id, int(item.asset.etag)))
                    if item.cursor:
                        self.cursor = item.cursor
                        self.ready.set()
            except grpc.aio.AioRpcError as error:
                trailers = dict(error.trailing_metadata() or ())
                self.ends.append("with cursor" if "cursor" in trailers else str(error.code().name))
                # gRPC's core answers CANCELLED to a call that reaches a server in the very moment
                # that it stops.
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                self.cursor = str(trailers.get("cursor", self.cursor))
            await asyncio.sleep(0.05)


def database(processes: Processes, role: str, password: str) -> Database:
    url = processes.cluster.url(processes.database, f"assets_{role}", password)
    settings = load("assets").model_dump() | {"database_url": url}
    return Database(Settings.model_validate(settings), "assets")


INSERT = Statement(
    asset_rows.LockedAsset,
    f"""
    INSERT INTO assets (id, owner, created_by, kind, public, free, file_name, size_bytes, mime_type)
    VALUES (gen_random_uuid(), %(owner)s, 'user:ada', 'product', false, true, %(file_name)s, 1,
        'image/jpeg')
    RETURNING {asset_rows.ASSETS.columns}
    """,
)
UPDATE = Statement(
    asset_rows.LockedAsset,
    "UPDATE assets SET version = version + 1 WHERE id = %(id)s"
    f" RETURNING {asset_rows.ASSETS.columns}",
)


async def make_assets(db: Database) -> list[UUID]:
    """Makes PENDING assets by statement; a watch sends them like any."""
    made = []
    for number in range(SUBJECTS):
        async with db.transaction(OWNER) as m:
            row = await m.one(INSERT, {"owner": OWNER, "file_name": f"{number}.jpg"})
            await asset_rows.publish(m, row)
        made.append(row.id)
    return made


async def write_out_of_order(db: Database, ids: list[UUID], chance: random.Random) -> int:
    """Runs transactions that change one to three assets and stay open for a while, so that they
    commit in another order than they began. Returns the number of published events."""
    told = 0
    while True:
        chosen = sorted(
            chance.sample(ids, chance.randint(1, 3))
        )  # in one order, so that no deadlock arises
        try:
            async with db.transaction(OWNER) as m:
                for asset_id in chosen:
                    row = await m.one(UPDATE, {"id": asset_id})
                    await asset_rows.publish(m, row)
                await asyncio.sleep(chance.uniform(0, 0.15))
            told += len(chosen)
        except asyncio.CancelledError:
            return told


async def write_by_call(client: Client, ids: list[UUID], chance: random.Random) -> None:
    stub = client.stub(asset_pb2_grpc.AssetServiceStub)
    while True:
        request = pb.UpdateAssetRequest(
            request_id=request_id(), asset_id=str(chance.choice(ids)), tags=[request_id()]
        )
        request.update_mask.paths.append("tags")
        while True:
            try:
                await stub.UpdateAsset(request, timeout=10)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
        await asyncio.sleep(chance.uniform(0, 0.05))


async def told(superuser: Superuser, after: int) -> list[tuple[str, int]]:
    rows = await superuser.rows(
        "SELECT subject_id, version FROM assets.events WHERE owner = %s AND position > %s ORDER BY"
        " position",
        OWNER,
        after,
    )
    return [(str(row.subject_id), row.version) for row in rows]


async def restart(processes: Processes, server: Process, number: int) -> Process:
    """Stops the server by SIGTERM or SIGKILL in turn, and restarts it on the same port."""
    if number % 2:
        server.kill()
    else:
        assert await server.stop() == 0
    server = processes.serve("assets", server.port)
    await server.healthy()
    return server


async def test_a_watch_misses_nothing_across_restarts_and_cut_connections(
    processes: Processes, stack: AsyncExitStack, measured: Callable[[str], None]
) -> None:
    server, worker = processes.serve("assets"), processes.work("assets")
    await server.healthy()
    db, superuser = (
        database(processes, "app", APP_PASSWORD),
        Superuser(processes.cluster.url(processes.database)),
    )
    await db.open()
    stack.push_async_callback(db.close)
    ids = await make_assets(db)
    cable = Cable(server.port)
    await cable.open()
    stack.push_async_callback(cable.close)
    clients = [
        Client({"assets": f"127.0.0.1:{cable.port}"}, processes.keys.token("ada")) for _ in range(3)
    ]
    for client in clients:
        stack.push_async_callback(client.close)
    some = [str(asset_id) for asset_id in ids[:4]]
    followers = [Follower(clients[0], []), Follower(clients[1], some)]
    for follower in followers:
        stack.callback(follower.task.cancel)
        await follower.ready.wait()
    await until(lambda: superuser.value(STAMPED), "all is stamped")
    start = await superuser.value("SELECT position FROM assets.event_stream")
    first_cursor = followers[0].cursor
    writing = [
        asyncio.create_task(write_out_of_order(db, ids, random.Random(seed))) for seed in range(6)
    ]
    calling = [
        asyncio.create_task(write_by_call(clients[2], ids, random.Random(seed)))
        for seed in range(2)
    ]
    await disturb(processes, server, worker, cable)
    for task in (*writing, *calling):
        task.cancel()
    published = sum(await asyncio.gather(*writing))
    await asyncio.gather(*calling, return_exceptions=True)
    await until(lambda: superuser.value(STAMPED), "all is stamped")
    expected = await told(superuser, start)
    wanted = [change for change in expected if change[0] in some]
    for follower, changes in zip(followers, (expected, wanted), strict=True):
        with suppress(AssertionError):  # the assertions below say better what is missing
            await until(lambda: follower.saw(len(changes)), "the follower has seen everything")  # noqa: B023
        assert follower.seen == changes, (follower.task, follower.ends[-5:])
    assert len(expected) > published > 1000
    for asset_id in map(str, ids):
        versions = [version for subject, version in expected if subject == asset_id]
        assert versions == list(range(versions[0], versions[0] + len(versions)))

    ends = followers[0].ends
    assert "with cursor" in ends
    measured(
        f"R4: {RESTARTS} restarts and as many cuts, {len(expected)} changes, a watch was begun"
        f" again {len(ends)} times ({ends.count('with cursor')} with a cursor from the trailers): 0"
        " gaps, duplicates, reorders"
    )
    await refuses_an_old_cursor(processes, clients[0], first_cursor)


async def disturb(processes: Processes, server: Process, worker: Process, cable: Cable) -> None:
    chance = random.Random(11)
    for number in range(RESTARTS):
        await asyncio.sleep(chance.uniform(0, 0.5))
        cable.cut()
        await asyncio.sleep(chance.uniform(0, 2))
        server = await restart(processes, server, number)
        if number % 5 == 4:  # restarts the sequencer, too
            worker.kill()
            worker = processes.work("assets")


async def refuses_an_old_cursor(processes: Processes, client: Client, cursor: str) -> None:
    db = database(processes, "worker", WORKER_PASSWORD)
    await db.open()
    assert await prune_events(db, timedelta(0)) > 1000
    await db.close()
    watch = client.stub(asset_pb2_grpc.AssetServiceStub).WatchAssets(
        pb.WatchAssetsRequest(cursor=cursor)
    )
    await refused(watch, grpc.StatusCode.OUT_OF_RANGE)


async def test_a_watch_goes_on_when_the_sequencer_is_frozen(
    processes: Processes, stack: AsyncExitStack, measured: Callable[[str], None]
) -> None:
    server, sequencer = processes.serve("assets"), processes.work("assets")
    await server.healthy()
    db, superuser = (
        database(processes, "app", APP_PASSWORD),
        Superuser(processes.cluster.url(processes.database)),
    )
    await db.open()
    stack.push_async_callback(db.close)
    await make_assets(db)
    await until(lambda: superuser.value(STAMPED), "all is stamped")
    client = Client(processes.addresses, processes.keys.token("ada"))
    stack.push_async_callback(client.close)
    follower = Follower(client, [])
    stack.callback(follower.task.cancel)
    await follower.ready.wait()

    sequencer.freeze()
    processes.work("assets")
    frozen = time.monotonic()
    made = await make_assets(db)
    await until(lambda: follower.saw(len(made)), "the other worker took over")
    measured(f"R4 frozen sequencer: watches go on after {time.monotonic() - frozen:.1f} s")
