"""Waits for a job within the call that requested it.

Such a call may last for minutes and costs almost nothing meanwhile. So it holds a place among the
streams and frees its place among the working calls, if its owner can have one there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from shared.background.tasks import not_cancelled
from shared.background.watches import EventStream
from shared.rpc import calls, limits
from shared.rpc.errors import DomainError, Reason

_PARTING_SECONDS = limits.TURN_AWAY_SECONDS + 0.2
_ANSWER_SECONDS = 0.5  # the end of a deadline, reserved for reading the row once more
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5


class Row(Protocol):
    """A row whose changes are published as events."""

    @property
    def id(self) -> UUID: ...


R = TypeVar("R")
W = TypeVar("W", bound=Row)


def patience() -> float:
    """Returns the seconds that the current call may wait. Moves the call to a place among the
    streams, so call it just before waiting."""
    limits.wait_apart()
    left = calls.time_left() or 0.0
    return left - min(_ANSWER_SECONDS, left / 2)


async def _look(read: Callable[[], Awaitable[R]]) -> R:
    row = await read()
    # A cancellation that coincides with the end of a statement may be lost; the call would wait on.
    if not not_cancelled():
        raise asyncio.CancelledError
    return row


async def until_told(
    stream: EventStream,
    request: Message,
    read: Callable[[], Awaitable[W]],
    done: Callable[[W], bool],
) -> W:
    """Returns the row from `read` once it is `done`, or its state shortly before the call's
    deadline. Reads the row again at each of its events."""
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
    except TimeoutError:
        pass
    except DomainError as error:
        # If the wait ends early (the server stops, the token expires), the job's current row is
        # still an answer. A stopping server gives it after a pause: a client that asks again at
        # once would get it hundreds of times, or be turned away as CANCELLED, which no client
        # repeats.
        if error.reason == Reason.ERROR_REASON_SHUTTING_DOWN:
            await asyncio.sleep(min(_PARTING_SECONDS, patience()))
    return await read()


async def until_seen(
    read: Callable[[], Awaitable[R]], done: Callable[[R], bool], seconds: float
) -> R:
    """Returns the row from `read` once it is `done`, or its state after `seconds`. For rows without
    events: it polls."""
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
