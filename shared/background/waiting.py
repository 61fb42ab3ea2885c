"""Waiting for a job, in the call that asked for it.

Such a call may last for minutes and costs next to nothing meanwhile. So it holds a place among the
streams, and not one of those that calls need for work, as long as its owner can have one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from shared.background.events import EventStream
from shared.background.tasks import wanted
from shared.rpc import calls, limits
from shared.rpc.errors import DomainError

_ANSWER_SECONDS = 0.5  # of a deadline, kept to read the row once more
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5


class Row(Protocol):
    """A row that events tell of."""

    @property
    def id(self) -> UUID: ...


R = TypeVar("R")
W = TypeVar("W", bound=Row)


def patience() -> float:
    """Seconds for which the call being served, which is about to wait, may do so."""
    limits.wait_apart()
    left = calls.time_left() or 0.0
    return left - min(_ANSWER_SECONDS, left / 2)


async def _look(read: Callable[[], Awaitable[R]]) -> R:
    row = await read()
    if (
        not wanted()
    ):  # a cancellation that meets the end of a statement may be lost, and the call would wait on
        raise asyncio.CancelledError
    return row


async def until_told(
    stream: EventStream,
    request: Message,
    read: Callable[[], Awaitable[W]],
    done: Callable[[W], bool],
) -> W:
    """The row that `read` gives once it is `done`, or as it is shortly before the call's deadline.
    It is read again whenever an event tells of it."""
    start = await stream.head()
    row = await _look(read)
    if done(row):
        return row
    try:
        async with asyncio.timeout(patience()), aclosing(stream.follow(request, start)) as changes:
            async for event, _cursor in changes:
                if event is not None and event.subject_id == row.id:
                    row = await _look(read)
                    if done(row):
                        return row
    except (TimeoutError, DomainError):
        # whatever ends the wait early (the server stops, the token expires): what was taken on is
        # still an answer
        pass
    return await read()


async def until_seen(
    read: Callable[[], Awaitable[R]], done: Callable[[R], bool], seconds: float
) -> R:
    """The row that `read` gives once it is `done`, or as it is after so many seconds; for what no
    event tells of."""
    clock = asyncio.get_running_loop().time
    ends_at = clock() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        row = await _look(read)
        left = ends_at - clock()
        if done(row) or left <= 0:
            return row
        await asyncio.sleep(min(pause, left))
        pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)
