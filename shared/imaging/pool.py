"""A pool of child processes for work on untrusted bytes."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AsyncExitStack
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from shared.background.turns import Turns
from shared.imaging.child import MEMORY_LIMIT, prepare, run_job, too_expensive
from shared.imaging.model import NotUnderstood

T = TypeVar("T")

JOBS_PER_CHILD = 300
# Children are forked from a process that has loaded only libvips, so a new child costs tens of
# milliseconds and not 200: a picture that kills its child must not be expensive.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["shared.imaging.inspection", "shared.imaging.variants"])


class ImagingPool:
    """Runs functions in up to `workers` child processes, each job limited to `memory` bytes, by
    default 512 MiB.

    A fork server starts the children when first needed (they inherit none of this process's sockets
    or threads). Each is reused for 300 jobs and dies with this process. If there are more calls
    than workers, owners take turns: an owner with many calls doesn't block the others.

    A new child imports the parent's main module unless that is a package's `__main__`, so services
    are started with `python -m`.
    """

    def __init__(self, workers: int = 2, memory: int = MEMORY_LIMIT) -> None:
        self._workers = workers
        self._closed = False
        self._turns = Turns(workers)
        threads = max(1, (os.cpu_count() or 1) // workers)
        # Last in, first out: under light load one warm child does all the work.
        self._idle = [_Child(threads, memory) for _ in range(workers)]

    async def run(self, function: Callable[..., T], *args: object, timeout: float = 20.0) -> T:
        """Calls `function(*args)` in a child and returns its result. Arguments and result must be
        picklable, the function importable.

        `timeout` is in seconds and counts from the moment a child is free. Cancelling the caller
        kills the child.

        Raises `ImageRejected` from the function, or with TOO_EXPENSIVE if the child ran out of time
        or memory, crashed or was killed; any other error of the function; `RuntimeError` if the
        pool is closed or children can't be started. A job may run twice: a child that is told to
        stop (SIGTERM) is replaced once.
        """
        # These are imported here because the fork server imports this module and must stay small.
        import structlog

        from shared.rpc import auth

        async with self._turns.slot(auth.current_share()):
            if self._closed:
                raise RuntimeError("the imaging pool is closed")
            child = self._idle.pop()
            try:
                return await child.call(function, args, timeout)
            except NotUnderstood as refusal:
                structlog.get_logger("imaging").error(
                    "a file isn't understood", cause=str(refusal.__cause__)
                )
                raise
            finally:
                self._idle.append(child)

    async def close(self) -> None:
        """Refuses further work, waits for running jobs, ends the children. To end at once, cancel
        the callers first."""
        self._closed = True
        async with AsyncExitStack() as all_of_them:
            for _ in range(self._workers):
                await all_of_them.enter_async_context(self._turns.slot(""))
            await asyncio.gather(*(child.stop() for child in self._idle))


class _Child:
    """One child process: a Pebble pool with a single worker, discarded unless the job answered.

    Pebble can cancel and time out by itself, but may then kill a worker that has already begun the
    next job, which would never end. With one pool per process no job ever follows another that is
    being cancelled.
    """

    def __init__(self, threads: int, memory: int) -> None:
        self._threads = threads
        self._memory = memory
        self._pool: ProcessPool | None = None

    async def call(self, function: Callable[..., T], args: tuple[object, ...], timeout: float) -> T:
        try:
            return await self._answer(function, args, timeout)
        except _Interrupted:
            # An idle child may be killed at any time; only this call notices.
            try:
                return await self._answer(function, args, timeout)
            except _Interrupted as error:
                raise RuntimeError(
                    "imaging children can't be started or are being stopped from outside"
                ) from error

    async def stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(_end, pool)

    async def _answer(
        self, function: Callable[..., T], args: tuple[object, ...], timeout: float
    ) -> T:
        answered = False
        try:
            async with asyncio.timeout(timeout) as patience:
                future: Future[T] = (await self._started()).schedule(run_job, (function, args))
                try:
                    result = await asyncio.wrap_future(future)
                except (asyncio.CancelledError, ProcessExpired, BrokenProcessPool):
                    raise
                except BaseException:
                    answered = True
                    raise
                answered = True
                return result
        except TimeoutError as error:
            if patience.expired():
                raise too_expensive(self._memory) from error
            raise
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGTERM:
                raise _Interrupted from error
            raise too_expensive(self._memory) from error
        except BrokenProcessPool as error:
            raise _Interrupted from error
        finally:
            if not answered:
                await asyncio.shield(self.stop())

    async def _started(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:  # the child was killed while idle
            await self.stop()
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=1,
                max_tasks=JOBS_PER_CHILD,
                initializer=prepare,
                initargs=(self._threads, self._memory),
                context=_FORKS,
            )
        return self._pool


class _Interrupted(Exception):
    """The child ended for a reason unrelated to its job."""


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()
