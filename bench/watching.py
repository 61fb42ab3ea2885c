"""B6: the time from an event's commit until everybody who watches has received it.

The clients are processes of their own (bench/watchers.py); ours and the reference alternate, one
event at a time. For one watcher the reference is NOTIFY in the same database. For many, it is the
streams of a server without a database, whose clock starts where it sets its asyncio event.
"""

import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import grpc
import psycopg
from atelier.assets.v1 import asset_pb2

from bench.bare import TELL
from bench.figure import CannotRun, Figure, Report, Rounds
from bench.site import OWNER, Site
from bench.watchers import EVENT, TOLD
from cli.suite import ROOT
from shared.database.ids import new_id

_ROUNDS = 9
_EVENTS = {1: 100, 1000: 20, 5000: 10}  # per round, by the number of watchers
_PROCESSES = 2  # processes that share the watchers
_PATIENCE = 60.0  # seconds within which watchers must be ready, or receive an event
_PAUSE = 0.03  # seconds between two events, so that each finds everybody idle

Tell = Callable[[int], int]


@dataclass
class _Audience:
    """Watchers of one side. `tell` sends event n and returns the start of its clock (monotonic,
    ns)."""

    tell: Tell
    clients: Sequence["subprocess.Popen[str]"]
    told: int = 0

    @classmethod
    def of(cls, stack: ExitStack, tell: Tell, watchers: int, *arguments: str) -> Self:
        count = min(_PROCESSES, watchers)
        kind, target, *rest = arguments
        command = [
            sys.executable,
            "-m",
            "bench.watchers",
            kind,
            target,
            str(watchers // count),
            *rest,
        ]
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(count)
        ]
        for client in clients:
            stack.callback(client.kill)
            if _line(client) != "ready\n":
                raise CannotRun(
                    f"{watchers} watchers don't stand; run {' '.join(command)} by hand to see why"
                )
        return cls(tell, clients)

    def p99(self, events: int) -> float:
        """Sends events; returns the p99 in milliseconds over all pairs of an event and a
        watcher."""
        took: list[int] = []
        for _ in range(events):
            self.told += 1
            began = self.tell(self.told)
            for client in self.clients:
                number, times = json.loads(_line(client))
                assert number == self.told
                took += [at - began for at in times]
            time.sleep(_PAUSE)
        return statistics.quantiles(took, n=100)[98] / 1e6

    def faults(self) -> int:
        """Ends the clients. Returns how many watchers missed an event, or got one twice or out of
        order."""
        expected, faults = list(range(1, self.told + 1)), 0
        for client in self.clients:
            print("end", file=client.stdin, flush=True)
            faults += sum(numbers != expected for numbers in json.loads(_line(client)))
        return faults


def _line(client: "subprocess.Popen[str]") -> str:
    assert client.stdout
    if not select.select([client.stdout], [], [], _PATIENCE)[0]:
        raise CannotRun(f"an event is lost: a client heard nothing for {_PATIENCE:.0f} seconds")
    return client.stdout.readline()


def audiences(report: Report) -> list[Figure]:
    """Measures B6."""
    figures: list[Figure] = []
    with Site() as site, ExitStack() as stack:
        _, address = site.assets("serve")
        site.assets("work")
        _, bare_address = site.server("bench.bare")
        site.sql(f"CREATE TABLE {TOLD} (payload bytea NOT NULL)")
        outbox = _outbox(stack.enter_context(psycopg.connect(site.url("app"))))
        notify = _notify(stack.enter_context(psycopg.connect(site.admin_url)))
        streams = _streams(stack.enter_context(grpc.insecure_channel(bare_address)))
        token = site.authorization[1]
        for watchers in _EVENTS:
            with ExitStack() as here:
                ours = _Audience.of(here, outbox, watchers, "watch", address, token)
                if watchers == 1:
                    reference = _Audience.of(here, notify, 1, "listen", site.admin_url)
                else:
                    reference = _Audience.of(here, streams, watchers, "watch", bare_address, token)
                figures += _compare(report, watchers, ours, reference)
    return figures


def _compare(report: Report, watchers: int, ours: _Audience, reference: _Audience) -> list[Figure]:
    pairs = []
    for number in range(_ROUNDS + 1):
        pair = ours.p99(_EVENTS[watchers]), reference.p99(_EVENTS[watchers])
        if number:  # the first round warms up
            pairs.append(pair)
        report(
            f"{watchers:,} watchers, round {number} of {_ROUNDS}: {pair[0]:.1f} ms, reference"
            f" {pair[1]:.1f} ms"
        )
    against = "NOTIFY" if watchers == 1 else "bare aio streams"
    what = f"one event to {watchers:,} watcher{'s' if watchers > 1 else ''}"
    reference.faults()
    return [
        Rounds(pairs).figure("B6", f"{what}, commit to receipt, p99 / {against}", "ms", 1.3),
        Figure("B6", f"{what}: lost, repeated or out of order", "watchers", ours.faults(), 0),
    ]


def _change(number: int) -> asset_pb2.Asset:
    asset = asset_pb2.Asset(
        id=str(new_id()),
        owner=OWNER,
        created_by="ada",
        kind=asset_pb2.ASSET_KIND_PHOTO,
        etag="2",
        state=asset_pb2.ASSET_STATE_READY,
        visibility=asset_pb2.VISIBILITY_PRIVATE,
        file_name=EVENT.format(number),
        file_path="assets/user:ada/visit-7/studio/front/original/01",
        size_bytes=2_140_026,
        mime_type="image/jpeg",
        width=3000,
        height=4000,
        sha256="ab" * 32,
        tags=["front", "studio", "spring"],
        scope=asset_pb2.AssetScope(session_id="visit-7", room_id="studio"),
    )
    asset.metadata.update({"camera": "X100", "shot": 12, "lights": ["key", "fill"]})
    return asset


def _outbox(conn: psycopg.Connection[Any]) -> Tell:
    def tell(number: int) -> int:
        asset = _change(number)
        conn.execute("SELECT set_config('app.owner_id', %s, true)", (OWNER,))
        conn.execute(
            "INSERT INTO assets.events (owner, subject, subject_id, version, type, payload)"
            " VALUES (%s, 'asset', %s, 2, 'atelier.assets.v1.Asset', %s)",
            (OWNER, asset.id, asset.SerializeToString()),
        )
        conn.execute("SELECT pg_notify('assets_outbox', '')")
        return _commit(conn)

    return tell


def _notify(conn: psycopg.Connection[Any]) -> Tell:
    def tell(number: int) -> int:
        conn.execute(
            f"INSERT INTO {TOLD} VALUES (%s)".encode(), (_change(number).SerializeToString(),)
        )
        conn.execute("SELECT pg_notify(%s, %s)", (TOLD, EVENT.format(number)))
        return _commit(conn)

    return tell


def _commit(conn: psycopg.Connection[Any]) -> int:
    began = time.monotonic_ns()
    conn.commit()
    return began


def _streams(channel: grpc.Channel) -> Tell:
    call: Any = channel.unary_unary(TELL, asset_pb2.WatchAssetsResponse.SerializeToString)
    cursor = "c" * 96  # as long as the cursors of ours

    def tell(number: int) -> int:
        return int(call(asset_pb2.WatchAssetsResponse(asset=_change(number), cursor=cursor)))

    return tell
