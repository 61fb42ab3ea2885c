"""The parts that the other services have in an erasure: their rows, and the messages."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from atelier.assets.v1 import storage_pb2 as pb
from atelier.assets.v1.erasure_pb2 import ReportErasureRequest

from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc.protos import EnumNames, timestamp

STATES = EnumNames(pb.ServiceErasureState, "SERVICE_ERASURE_STATE_")
WAITING, ERASING, DONE = "waiting", "erasing", "done"


@dataclass(slots=True)
class Part:
    """One service's part. `seen_at`: when the service was last heard of."""

    owner: str
    service: str
    state: str
    counts: dict[str, Any]  # the fields of ErasureCount by what was erased or kept
    updated_at: datetime
    seen_at: datetime


SELECT_PARTS = Statement(
    Part,
    """
    SELECT p.owner, p.service, p.state, p.counts, p.updated_at, s.seen_at
    FROM erasure_parts p JOIN erasure_services s ON s.service = p.service
    WHERE p.owner = %(owner)s ORDER BY p.service
    """,
)
_EXPECT_ALL = Command("""
    INSERT INTO erasure_parts (owner, service) SELECT %(owner)s, service FROM erasure_services
    ON CONFLICT DO NOTHING
""")


async def expect(m: Mutation) -> None:
    """Adds the parts of all services that follow erasures, for the transaction's owner."""
    await m.run(_EXPECT_ALL, {"owner": m.owner})


def reached(parts: Sequence[Part]) -> bool:
    """Returns whether every service refuses what is new of the owner."""
    return all(part.state != WAITING for part in parts)


def done(parts: Sequence[Part]) -> bool:
    return all(part.state == DONE for part in parts)


def to_proto(part: Part) -> pb.ServiceErasure:
    return pb.ServiceErasure(
        service=part.service,
        state=STATES.number[part.state],
        counts=counts_to_proto(part.counts),
        message=_message(part),
        update_time=None if part.state == WAITING else timestamp(part.updated_at),
    )


def counts_to_proto(counts: Mapping[str, Any]) -> list[pb.ErasureCount]:
    return [pb.ErasureCount(what=what, **counts[what]) for what in sorted(counts)]


def counts_of(request: ReportErasureRequest) -> dict[str, Any]:
    return {
        each.what: {"erased": each.erased, "kept": each.kept, "why_kept": each.why_kept}
        for each in request.counts
    }


def _message(part: Part) -> str:
    if part.state == WAITING:
        return f"not reached yet: last heard of at {part.seen_at:%Y-%m-%d %H:%M} UTC"
    if part.state == ERASING:
        return "it refuses what is new, and erases what it has"
    return "everything is erased, but for what is kept"


class Waker:
    """Wakes the streams of this process that tell services of erasures. Other processes' streams
    find them a second later."""

    def __init__(self) -> None:
        self.stopping = False
        self._sleepers: set[asyncio.Event] = set()

    def wake(self) -> None:
        for each in self._sleepers:
            each.set()

    async def drain(self, also: Callable[[], Awaitable[None]]) -> None:
        """Ends the streams, and awaits `also`."""
        self.stopping = True
        self.wake()
        await also()

    async def sleep(self, seconds: float) -> None:
        """Sleeps until woken, at the longest for `seconds`."""
        if self.stopping:
            return
        woken = asyncio.Event()
        self._sleepers.add(woken)
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            pass
        finally:
            self._sleepers.discard(woken)
