"""Clients of B6, in processes that aren't measured: `python -m bench.watchers watch|listen <target>
<streams> [<token>]`.

`watch` opens that many WatchAssets streams at a server, `listen` one LISTEN in a database. It
prints `ready` when all are open. For each event that all of them received it prints a line of JSON:
the event's number and when each received it. After a line on standard input it prints everything
that came: for each stream the numbers in their order.
"""

import asyncio
import gc
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import uvloop
from atelier.assets.v1 import asset_pb2

from shared.rpc.server import MAX_STREAMS_PER_CONNECTION

EVENT = (  # the name of an event's asset; found in the bytes without parsing the message
    "event {:06}"
)
TOLD = "bench_told"  # the channel and the table of the reference for one watcher
_MARK = EVENT.partition("{")[0].encode()
_OPENED_AT_ONCE = 16


class Tally:
    """Records what came, and when: CLOCK_MONOTONIC, which all processes of a machine share."""

    def __init__(self, streams: int) -> None:
        self._streams: list[list[int]] = [[] for _ in range(streams)]
        self._times: dict[int, list[int]] = defaultdict(list)

    def note(self, stream: int, data: bytes) -> None:
        at = time.monotonic_ns()
        found = data.find(_MARK)
        if found < 0:  # a bookmark
            return
        number = int(data[found + len(_MARK) :][:6])
        self._streams[stream].append(number)
        times = self._times[number]
        times.append(at)
        if len(times) == len(self._streams):
            print(json.dumps([number, times]), flush=True)

    def say_all(self) -> None:
        print(json.dumps(self._streams), flush=True)


async def watch(address: str, streams: int, token: str) -> None:
    tally, gate = Tally(streams), asyncio.Semaphore(_OPENED_AT_ONCE)
    standing = [asyncio.Event() for _ in range(streams)]
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(0, streams, MAX_STREAMS_PER_CONNECTION)
    ]

    async def follow(number: int) -> None:
        call: Any = channels[number // MAX_STREAMS_PER_CONNECTION].unary_stream(
            "/atelier.assets.v1.AssetService/WatchAssets",
            asset_pb2.WatchAssetsRequest.SerializeToString,
        )
        async with gate:
            stream = call(asset_pb2.WatchAssetsRequest(), metadata=(("authorization", token),))
            while not asset_pb2.WatchAssetsResponse.FromString(await stream.read()).bookmark.ready:
                pass
        standing[number].set()
        while (data := await stream.read()) is not grpc.aio.EOF:
            tally.note(number, data)

    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(number)) for number in range(streams)]
        for each in standing:
            await each.wait()
        await _until_told_to_end(tally)
        for task in following:
            task.cancel()


async def listen(database: str) -> None:
    tally = Tally(1)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(f"LISTEN {TOLD}".encode())

        async def follow(notices: AsyncIterator[psycopg.Notify]) -> None:
            async for notice in notices:
                tally.note(0, notice.payload.encode())

        following = asyncio.create_task(follow(conn.notifies()))
        await _until_told_to_end(tally)
        following.cancel()


async def _until_told_to_end(tally: Tally) -> None:
    gc.freeze()  # a garbage collection here would look like a slow server
    gc.disable()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    tally.say_all()


if __name__ == "__main__":
    _, kind, target, count, *rest = sys.argv
    uvloop.run(listen(target) if kind == "listen" else watch(target, int(count), rest[0]))
