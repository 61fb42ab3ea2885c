"""Endless tasks that do end."""

import asyncio


def wanted() -> bool:
    """False once the current task was asked to end. For loops that go on after errors: an error on the way out, such as
    a database that is gone, can take the place of the cancellation, which would then be forgotten."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()
