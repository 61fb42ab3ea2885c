"""Endless loops end when they are cancelled, whatever becomes of the CancelledError."""

import asyncio

from shared.background import tasks


async def test_a_loop_whose_cancellation_was_lost_does_not_sleep_on() -> None:
    working = asyncio.Event()

    async def work_forever() -> None:
        while tasks.not_cancelled():
            working.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass  # as the end of a statement may do
            await tasks.pause(3600)

    task = asyncio.create_task(work_forever())
    await working.wait()
    task.cancel()
    await asyncio.wait_for(task, 5)


async def test_a_pause_is_one_otherwise() -> None:
    began = asyncio.get_running_loop().time()
    await tasks.pause(0.05)
    assert asyncio.get_running_loop().time() - began >= 0.04
