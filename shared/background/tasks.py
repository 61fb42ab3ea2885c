"""Tasks that end: endless ones when asked to, groups with the first of them that fails."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def wanted() -> bool:
    """False once the current task was asked to end. For loops without end: the cancellation itself
    may have been lost. An error on the way out, such as a database that is gone, can take its
    place, and until Python 3.12 `wait_for`, by which psycopg's pool waits for a connection, forgets
    one that comes as it succeeds."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()


async def all_of(work: list[Coroutine[Any, Any, None]]) -> None:
    """Runs everything at once; the first error ends the rest and is raised as it is."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
