"""Ends asyncio tasks reliably: endless loops when cancelled, groups at their first error."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def not_cancelled() -> bool:
    """Returns False once cancellation of the current task was requested. Use it as the condition of
    endless loops, because a CancelledError can be lost: another error on the way out, such as an
    unreachable database, can replace it, and before Python 3.12 `wait_for`, with which psycopg's
    pool waits for a connection, drops one that arrives as it succeeds."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()


async def pause(seconds: float) -> None:
    """Sleeps, unless cancellation of the current task was requested. Use it after work in endless
    loops: a sleep of minutes would keep a worker whose cancellation was lost from ending."""
    if not_cancelled():
        await asyncio.sleep(seconds)


async def all_of(work: list[Coroutine[Any, Any, None]]) -> None:
    """Runs everything concurrently; the first error cancels the rest and is raised unchanged."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
