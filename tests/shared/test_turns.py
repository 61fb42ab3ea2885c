"""Owners take turns in a queue, however much each queued before (real queue, real worker)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest

from shared.background.jobs import BACKFILL, FRESH, JobQueue, TryAgain
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, calls
from tests.assets import flows
from tests.suite import Suite

ADA, BOB, EVE = "user:ada", "user:bob", "user:eve"


class Counter:
    """A queue whose jobs only wait to be let go."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.queue = JobQueue(db)
        self.queue.task("serve", "counter", self._serve)
        self.started: list[str] = []
        self.trouble: dict[
            str, Callable[[], Awaitable[TryAgain]]
        ] = {}  # by job: how its first attempt ends
        self._let_go = asyncio.Semaphore(0)
        self._gone = 0

    async def _serve(self, job: str) -> None:
        if job in self.trouble:
            raise await self.trouble.pop(job)()
        self.started.append(job)
        await self._let_go.acquire()

    async def queue_up(
        self, owner: str, jobs: Sequence[str], priority: int = FRESH, urgency: int | None = None
    ) -> None:
        async with self.db.transaction(owner) as m:
            for job in jobs:
                await self.queue.enqueue(
                    m, "serve", "counter", job, priority=priority, urgency=urgency
                )

    async def positions(self, jobs: Sequence[str]) -> list[int | None]:
        auth.enter(calls.owner_identity(ADA))  # any owner may ask: all owners' jobs are counted
        return [await self.queue.position(job) for job in jobs]

    async def serve(self, count: int) -> None:
        """Lets one job after the other go until so many have started."""
        async with asyncio.timeout(30):
            while len(self.started) < count:
                if self._gone < len(self.started):
                    self._gone += 1
                    self._let_go.release()
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def workers(self, count: int = 1) -> AsyncIterator[None]:
        work = asyncio.create_task(self.queue.work(concurrency=count, lease_seconds=3))
        try:
            yield
        finally:
            for _ in range(1000):
                self._let_go.release()
            work.cancel()
            await asyncio.wait([work])


@asynccontextmanager
async def counter(suite: Suite) -> AsyncIterator[Counter]:
    db = Database(suite.settings("assets", "worker"), "assets")
    await db.open()
    try:
        yield Counter(db)
    finally:
        await db.close()


def named(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


async def test_who_comes_after_an_owner_with_many_jobs_is_among_the_next(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, named("ada", 500))
        await line.queue_up(BOB, named("bob", 3))
        await line.queue_up(EVE, named("eve", 1))
        async with line.workers():
            await line.serve(8)

    assert line.started[:8] == [
        "ada-0",
        "bob-0",
        "eve-0",
        "ada-1",
        "bob-1",
        "ada-2",
        "bob-2",
        "ada-3",
    ]


async def test_turns_that_have_passed_are_not_made_up_for(suite: Suite) -> None:
    """An owner who used workers that nobody else wanted isn't put at a disadvantage, even while an
    earlier job of another owner waits for its next attempt."""
    async with counter(suite) as line:

        async def in_an_hour() -> TryAgain:
            [now] = await line.db.system_all(Statement(datetime, "SELECT now()"))
            return TryAgain(now + timedelta(hours=1))

        line.trouble["ada-0"] = in_an_hour
        await line.queue_up(ADA, named("ada", 60))
        async with line.workers():
            await line.serve(30)
            await line.queue_up(BOB, named("bob", 20))
            await line.queue_up(ADA, ["ada-last"])
            await line.serve(80)
    assert line.started[30:34] == ["ada-31", "bob-0", "ada-32", "bob-1"]
    assert line.started[31:70:2] == named("bob", 20)
    assert line.started[-1] == "ada-last", "one's own jobs keep their order"


async def test_an_owner_alone_has_all_workers(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, named("ada", 8))
        async with line.workers(4), asyncio.timeout(20):
            while len(line.started) < 4:  # all at once: none of them is let go
                await asyncio.sleep(0.01)
    assert sorted(line.started[:4]) == named("ada", 4)


async def test_what_is_urgent_comes_first_and_takes_turns_among_itself(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, named("nobody-waits", 3), priority=BACKFILL)
        await line.queue_up(BOB, ["nobody-waits-for-bob"], priority=BACKFILL)
        await line.queue_up(ADA, named("fresh", 2))
        await line.queue_up(BOB, ["fresh-for-bob"])

        await line.queue_up(ADA, ["at-once"], priority=FRESH + 1)
        assert await line.queue.busy("counter", above=BACKFILL) and not await line.queue.busy(
            "counter", above=FRESH + 1
        )
        async with line.workers():
            await line.serve(4)
            assert not await line.queue.busy("counter", above=BACKFILL)
            await line.serve(8)
    assert line.started == [
        "at-once",
        "fresh-0",
        "fresh-for-bob",
        "fresh-1",
        "nobody-waits-0",
        "nobody-waits-for-bob",
        "nobody-waits-1",
        "nobody-waits-2",
    ]


async def test_what_an_owner_calls_urgent_goes_before_the_owners_own_jobs_only(
    suite: Suite,
) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, named("ada", 3), urgency=5)
        await line.queue_up(BOB, named("bob", 4), urgency=5)
        await line.queue_up(ADA, named("can-wait", 1), urgency=0)
        await line.queue_up(ADA, named("urgent", 2), urgency=9)
        expected = [
            "urgent-0",
            "bob-0",
            "urgent-1",
            "bob-1",
            "ada-0",
            "bob-2",
            "bob-3",
            "ada-1",
            "ada-2",
            "can-wait-0",
        ]
        assert await line.positions(expected) == list(range(1, 11))

        async with line.workers():
            await line.serve(10)
    assert line.started == expected


async def test_an_anonymous_callers_urgency_is_no_other_ones_loss(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up("anonymous:one", ["first-visitor"], urgency=0)
        await line.queue_up("anonymous:two", ["second-visitor"], urgency=9)
        assert await line.positions(["first-visitor", "second-visitor"]) == [1, 2]
        async with line.workers():
            await line.serve(2)
    assert line.started == ["first-visitor", "second-visitor"]


async def test_each_job_runs_once_while_many_workers_look_for_the_urgent_ones(suite: Suite) -> None:
    async with counter(suite) as line:

        async def at_once() -> TryAgain:
            return TryAgain()

        jobs = [
            (owner, f"{owner}-{number:02}", number * 7 % 10)
            for number in range(40)
            for owner in (ADA, BOB)
        ]
        for owner, job, urgency in jobs:
            await line.queue_up(owner, [job], urgency=urgency)
        line.trouble = {job: at_once for _, job, urgency in jobs if urgency > 7}
        async with line.workers(4):
            await line.serve(80)
    assert sorted(line.started) == sorted(job for _, job, _ in jobs)
    assert suite.sql("SELECT count(*) FROM assets_jobs.procrastinate_jobs") == [(0,)]


async def test_a_job_that_is_tried_again_keeps_its_turn(suite: Suite) -> None:
    async with counter(suite) as line:

        async def at_once() -> TryAgain:
            return TryAgain()

        line.trouble["bob-0"] = at_once
        await line.queue_up(ADA, named("ada", 3))
        await line.queue_up(BOB, named("bob", 2))
        async with line.workers():
            await line.serve(5)
    assert line.started == ["ada-0", "bob-0", "ada-1", "bob-1", "ada-2"]


async def test_anonymous_owners_have_one_turn_together(suite: Suite) -> None:
    async with counter(suite) as line:
        for visitor in range(4):
            await line.queue_up(f"anonymous:{visitor}", [f"visitor-{visitor}"])
        await line.queue_up(ADA, named("ada", 3))
        async with line.workers():
            await line.serve(7)

    assert line.started == [
        "visitor-0",
        "ada-0",
        "visitor-1",
        "ada-1",
        "visitor-2",
        "ada-2",
        "visitor-3",
    ]


async def test_turns_that_are_used_up_go_by_arrival(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, ["ada-0"])
        last = "UPDATE assets_jobs.procrastinate_jobs SET priority = %s"
        await suite.change(last, ((FRESH - 1) * 10_000_000 + 1,))
        await line.queue_up(ADA, ["ada-1"])
        await line.queue_up(BOB, ["bob-0"])
        await line.queue_up(BOB, ["urgent"], priority=FRESH + 1)
        await line.queue_up(BOB, ["backfill"], priority=FRESH - 1)
        async with line.workers():
            await line.serve(5)

    assert line.started == ["urgent", "ada-0", "ada-1", "bob-0", "backfill"]


async def test_the_queue_knows_owners_by_a_number_only(suite: Suite) -> None:
    async with counter(suite) as line:
        await line.queue_up(ADA, ["ada-0"])
    [(row,)] = suite.sql("SELECT procrastinate_jobs::text FROM assets_jobs.procrastinate_jobs")
    assert "user:ada" not in row


@pytest.mark.long
async def test_a_picture_is_ready_before_the_many_that_another_owner_sent_earlier(
    suite: Suite,
) -> None:
    await suite.serve("assets")  # no worker yet
    ada, bob = suite.client("ada"), suite.client("bob")
    for seed in range(20):
        await flows.upload(ada, flows.jpeg(64, 48, seed=seed))
    picture = await flows.upload(bob, flows.jpeg(64, 48))
    await suite.work("assets")
    await flows.variants_of(bob, picture.id)

    [(before,)] = suite.sql(
        "SELECT count(*) FROM assets.attempts a, assets.attempts b"
        " WHERE a.owner = 'user:ada' AND b.owner = 'user:bob' AND a.created_at < b.created_at"
    )
    assert before < 4, "at most what the workers took together with it"
