"""Waiting, in the call that asked, for a job to come to its end."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from shared import calls
from shared.errors import DomainError
from shared.events import EventStream

_ANSWER_SECONDS = 0.5  # of a deadline, kept to read the row once more


async def until_ended(
    stream: EventStream, request: Message, read: Callable[[], Awaitable[Any]], ended: Collection[str]
) -> Any:
    """The row that `read` gives, once its state is one of `ended`, or as it is shortly before the call's deadline."""
    start = await stream.head()
    row = await read()
    left = calls.time_left()
    if row.state in ended or not left:
        return row
    try:
        async with (
            asyncio.timeout(left - min(_ANSWER_SECONDS, left / 2)),
            aclosing(stream.follow(request, start)) as changes,
        ):
            async for event, _cursor in changes:
                if event is not None and event.subject_id == row.id:
                    row = await read()
                    if row.state in ended:
                        return row
    except (TimeoutError, DomainError):
        pass  # whatever ends the wait early (the server stops, the token expires): what was taken on is still an answer
    return await read()
