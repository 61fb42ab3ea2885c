"""Reads of one statement: whose rows they see, and the state of the connection after a failure or a
cancellation."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from shared.database.db import Database
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.rpc import auth, calls, errors
from tests.suite import Suite


@dataclass(slots=True)
class Everything:
    """One value of each kind."""

    number: int
    text: str
    id: UUID
    at: datetime
    tags: list[str]
    nothing: str | None
    json: dict[str, int]


ECHO = Statement(
    Everything,
    "SELECT %(number)s::int AS number, %(text)s::text AS text, %(id)s::uuid AS id,"
    " %(at)s::timestamptz AS at, %(tags)s::text[] AS tags, %(nothing)s::text AS nothing,"
    " %(json)s::jsonb AS json",
)
OWNER = Statement(str, "SELECT current_setting('app.owner_id', true)")
SESSION = Statement(int, "SELECT pg_backend_pid()")
SLEEP = Statement(str, "SELECT pg_sleep(%(seconds)s)::text")
HALF = Statement(int, "SELECT 1 / %(number)s")


@pytest.fixture
async def db(suite: Suite) -> AsyncIterator[Database]:
    """A pool of one connection, so that the next read meets what a read left behind."""
    made = Database(suite.settings("assets", "app"), "assets", pool_size=1)
    await made.open()
    auth.enter(calls.owner_identity("user:ada"))
    yield made
    await made.close()


async def test_values_arrive_as_they_were_sent_before_and_after_a_statement_is_prepared(
    db: Database,
) -> None:
    for number in (1, 40_000, 3_000_000_000 // 2, 2, 3, 4, 5, 6, 7):
        values = {
            "number": number,
            "text": "100 % $1 'ü'",
            "id": new_id(),
            "at": datetime(2026, 11, 30, 12, tzinfo=UTC),
            "tags": ["a", "b c"],
            "nothing": None,
            "json": psycopg.types.json.Jsonb({"a": number}),
        }

        row = await db.one(ECHO, values)
        assert row == Everything(**{**values, "json": {"a": number}})  # type: ignore[arg-type]


async def test_a_rollback_in_between_takes_nothing_from_reads(db: Database) -> None:
    for _ in range(3):
        for _ in range(8):
            assert await db.one(HALF, {"number": 1}) == 1
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with db.transaction("user:ada") as m:
                await m.one(HALF, {"number": 0})


async def test_the_owner_is_seen_by_its_own_read_alone(db: Database) -> None:
    assert await db.one(OWNER) == "user:ada"
    assert await db.system_all(OWNER) in ([""], [None])
    auth.enter(calls.owner_identity("user:bob"))
    assert await db.one(OWNER) == "user:bob"


async def test_a_read_that_fails_says_why_and_leaves_its_connection_as_it_was(db: Database) -> None:
    session = await db.one(SESSION)
    for _ in range(8):
        with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
            await db.one(HALF, {"number": 0})
        assert await db.one(HALF, {"number": 1}) == 1
    assert await db.one(SESSION) == session


async def test_a_statement_that_fails_when_it_is_prepared_is_in_nobodys_way(db: Database) -> None:
    session = await db.one(SESSION)
    failing = Statement(int, "SELECT 2 / %(number)s")
    for _ in range(10):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await db.one(failing, {"number": 0})

    other = Statement(str, "SELECT current_setting('app.owner_id', true) AS name")
    for _ in range(10):
        assert await db.one(other) == "user:ada"
        assert await db.one(failing, {"number": 1}) == 2
    assert await db.one(SESSION) == session


async def test_a_rollback_that_drops_what_is_prepared_is_in_no_reads_way(
    db: Database,
) -> None:
    session = await db.one(SESSION)
    change = Statement(int, "SELECT 1 AS one WHERE %(number)s > 0")

    async def refuse() -> None:
        async with db.transaction("user:ada") as m:
            await m.one(change, {"number": 1})
            raise ValueError("a refusal")

    for _ in range(3):
        for _ in range(10):
            assert await db.one(OWNER) == "user:ada"
        async with db.transaction("user:ada") as m:
            for _ in range(10):  # until psycopg prepares it
                await m.one(change, {"number": 1})
        with pytest.raises(ValueError, match="a refusal"):
            await refuse()
    assert await db.one(OWNER) == "user:ada"
    assert await db.one(SESSION) == session


async def test_a_read_that_is_cancelled_ends_its_query(db: Database, suite: Suite) -> None:
    session = await db.one(SESSION)
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(%%'"
        " AND state = 'active' AND pid = %s"
    )

    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await db.one(SLEEP, {"seconds": 30})
        assert suite.sql(busy, (session,)) == [(0,)]
        assert await db.one(OWNER) == "user:ada"


async def test_a_session_that_is_ended_amid_a_read_is_replaced(db: Database, suite: Suite) -> None:
    session = await db.one(SESSION)
    reading = asyncio.create_task(db.one(SLEEP, {"seconds": 30}))
    await asyncio.sleep(0.3)
    suite.sql("SELECT pg_terminate_backend(%s)", (session,))
    with pytest.raises(psycopg.OperationalError):
        await reading
    assert await db.one(SESSION) != session


async def test_calls_that_are_cancelled_at_any_moment_leave_every_connection_usable(
    suite: Suite,
) -> None:
    """Twelve callers share three connections, and every other call is cancelled, some of them
    twice. A connection with another call's owner, result or transaction would show."""
    db = Database(suite.settings("assets", "app"), "assets", pool_size=3)
    await db.open()
    chance = random.Random(7)
    ended = Counter[str]()

    async def call(owner: str) -> None:
        auth.enter(calls.owner_identity(owner))
        kind = chance.random()
        if kind < 0.4:
            assert await db.one(OWNER) == owner
        elif kind < 0.5:
            with pytest.raises(psycopg.errors.DivisionByZero):
                await db.one(HALF, {"number": 0})
        elif kind < 0.6:
            await db.one(SLEEP, {"seconds": 0.02 * chance.random()})
        else:
            async with db.transaction(owner) as m:
                assert await m.one(OWNER) == owner
                await m.one(SLEEP, {"seconds": 0.01 * chance.random()})
                if kind < 0.7:
                    raise KeyError("refused")

    async def caller(number: int) -> None:
        for turn in range(60):
            task = asyncio.create_task(call(f"user:{number}-{turn}"))
            for _ in range(chance.choice((0, 0, 1, 2))):
                await asyncio.sleep(0.02 * chance.random() ** 2)
                task.cancel()
            try:
                await task
                ended["done"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1
            except KeyError:
                ended["refused"] += 1

    await asyncio.gather(*map(caller, range(12)))
    await db.close()
    assert min(ended["done"], ended["cancelled"], ended["refused"]) > 20, ended


async def test_a_transaction_that_lasts_too_long_is_a_lost_connection(suite: Suite) -> None:
    """The server ends its session. What the caller did was no fault, so a repeat may help."""
    suite.overrides["statement_timeout_seconds"] = 0.3
    db = Database(suite.settings("assets", "app"), "assets", pool_size=1)
    await db.open()

    async def linger() -> None:
        async with db.transaction("user:ada") as m:
            await m.one(SESSION)
            await asyncio.sleep(1)
            await m.one(SESSION)

    with pytest.raises(psycopg.OperationalError) as lost:
        await linger()
    assert errors.passing(lost.value)

    auth.enter(calls.owner_identity("user:ada"))
    assert await db.one(OWNER) == "user:ada"
    await db.close()


async def test_a_statement_that_fits_its_table_no_longer_is_prepared_anew(
    db: Database, suite: Suite
) -> None:
    suite.sql("CREATE TABLE assets.changing AS SELECT 1::int AS number")
    suite.sql("GRANT SELECT ON assets.changing TO assets_app")
    number = Statement(int, "SELECT number FROM changing")
    for _ in range(10):
        assert await db.one(number) == 1

    suite.sql("ALTER TABLE assets.changing ALTER number TYPE bigint")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        await db.one(number)
    assert await db.one(number) == 1
    suite.sql("DROP TABLE assets.changing")
