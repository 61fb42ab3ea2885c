"""The ledger: the sum of its entries is the account, whatever happens to the jobs, and nobody can
change an entry."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from atelier.conversions.v1 import analysis_pb2, credit_pb2, job_pb2

from services.conversions import ledger
from shared.database.db import Database
from shared.telemetry import METRICS
from tests.assets.flows import request_id
from tests.calls import refusal_of
from tests.conversions import flows, ledger_model
from tests.suite import APP_PASSWORD, WORKER_PASSWORD, Client, Cluster, Suite

RESERVE = credit_pb2.CREDIT_ENTRY_KIND_RESERVE
COMMIT = credit_pb2.CREDIT_ENTRY_KIND_COMMIT
RELEASE = credit_pb2.CREDIT_ENTRY_KIND_RELEASE
ROLES = {"conversions_app": APP_PASSWORD, "conversions_worker": WORKER_PASSWORD}


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    name = cluster.clone()
    yield name
    cluster.drop(name)


def play_games(
    cluster: Cluster, database: str, games: int, seed: int, at_once: int = 250
) -> Counter[str]:
    """Plays games against the real tables and compares every one with the model. Returns how often
    a step had each outcome, and how many jobs were `charged`."""
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    app = cluster.url(database, "conversions_app", APP_PASSWORD)
    with (
        psycopg.connect(app) as conn,
        psycopg.connect(cluster.url(database), autocommit=True) as looking,
    ):
        ledger_model.prepare(conn)
        for first in range(0, games, at_once):
            names = [f"user:game-{n}" for n in range(first, min(first + at_once, games))]
            played = [ledger_model.game(dice, name) for name in names]
            steps = [step for _, steps, _ in played for step in steps]
            expected = [said for _, _, expected in played for said in expected]
            said = ledger_model.play(conn, steps)
            conn.commit()
            for number, (step, became, should) in enumerate(
                zip(steps, said, expected, strict=True)
            ):
                assert became == should, f"step {number} of {first}: {step} became {became!r}"
            owners = [owner for owner, _, _ in played]
            ledger_model.check(looking.execute(ledger_model.FACTS, (names,)).fetchall(), owners)
            outcomes.update(said)
            outcomes["charged"] += sum(len(owner.charged) for owner in owners)
    return outcomes


def test_a_thousand_games_are_never_over_the_cap_never_charged_twice_and_add_up(
    cluster: Cluster, database: str
) -> None:
    outcomes = play_games(cluster, database, 1_000, seed=24)

    # What is compared happens often enough to say something.
    assert outcomes.total() > 10_000
    assert {name: number for name, number in outcomes.items() if number < 50} == {}
    assert set(outcomes) == ledger_model.OUTCOMES | {"charged"}


def test_the_model_notices_a_job_that_is_charged_twice(cluster: Cluster, database: str) -> None:
    """The comparison can fail: without the limit to what was set aside it does."""
    with psycopg.connect(cluster.url(database), autocommit=True) as conn:
        [(source,)] = conn.execute(
            "SELECT pg_get_functiondef('conversions.settle_credits'::regproc)"
        ).fetchall()
        assert isinstance(source, str)
        broken = source.replace("rest := OLD.credits_reserved - NEW.credits", "rest := 0")
        assert broken != source
        conn.execute(broken)

    with pytest.raises(AssertionError, match=r"became|Owner"):
        play_games(cluster, database, 250, seed=24)


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_no_login_may_change_or_delete_an_entry(suite: Suite, role: str) -> None:
    await suite.serve("conversions")
    await flows.grant(suite, 10)
    url = suite.cluster.url(suite.database, role, ROLES[role])

    for statement in (
        "UPDATE conversions.credit_entries SET credits = 1000",
        "DELETE FROM conversions.credit_entries",
        "TRUNCATE conversions.credit_entries CASCADE",
        "ALTER TABLE conversions.credit_entries DISABLE TRIGGER ALL",
    ):
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("SELECT set_config('app.owner_id', 'user:ada', false)")
            conn.execute("SELECT set_config('app.operator', 'on', false)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)
    granted = suite.sql(
        "SELECT p FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS p"
        " WHERE has_table_privilege(%s, 'conversions.credit_entries', p)"
        " OR (p = 'UPDATE' AND has_any_column_privilege(%s, 'conversions.credit_entries', p))",
        (role, role),
    )
    assert granted == []


async def test_the_role_that_serves_may_add_only_what_its_context_allows(suite: Suite) -> None:
    url = suite.cluster.url(suite.database, "conversions_app", APP_PASSWORD)
    add = "INSERT INTO conversions.credit_entries (owner, kind, credits) VALUES (%s, 'grant', 5)"

    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT set_config('app.owner_id', 'user:bob', false)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(add, ("user:ada",))

    assert suite.sql("SELECT count(*) FROM conversions.credit_entries") == [(0,)]


def worker_database(suite: Suite) -> Database:
    return Database(suite.settings("conversions", "worker"), "conversions")


def shown(name: str) -> Any:
    return METRICS.get_sample_value(name)


async def test_an_account_that_differs_is_told_at_the_start_and_not_mended(suite: Suite) -> None:
    await suite.serve("assets", "conversions")
    await flows.grant(suite, 10)
    await flows.grant(suite, 10, owner="user:bob")
    db = worker_database(suite)
    await db.open()
    try:
        assert await ledger.mismatches(db) == []

        suite.sql("UPDATE conversions.credit_accounts SET available = 11 WHERE owner = 'user:ada'")
        [found] = await ledger.mismatches(db)
        assert (found.owner, found.available, found.entries_available) == ("user:ada", 11, 10)
    finally:
        await db.close()

    await suite.work("conversions")
    await until_checked()
    assert shown("atelier_credit_mismatches") == 1
    assert (await flows.balance(suite.client("ada"))).available == 11


async def until_checked() -> None:
    async with asyncio.timeout(10):
        while shown("atelier_credit_mismatches") != 1:
            await asyncio.sleep(0.02)


async def test_what_no_job_holds_any_more_is_told(suite: Suite) -> None:
    await flows.start(suite, working=False)
    await flows.analyse_facts(suite.client("ada"), wait=False)
    db = worker_database(suite)
    await db.open()
    try:
        assert await ledger.mismatches(db) == []
        # As no login can: without the trigger that would release what the job holds.
        suite.sql("SET session_replication_role = replica")
        suite.sql("DELETE FROM conversions.analyses")

        [found] = await ledger.mismatches(db)
        assert (found.reserved, found.entries_reserved, found.held_by_jobs) == (1, 1, 0)
    finally:
        await db.close()


async def test_a_row_that_is_deleted_releases_what_it_held(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.analyse_facts(ada, wait=False)
    await flows.generate(ada, prompt="a coat", wait=False)

    for table in ("analyses", "generations"):
        suite.sql(f"DELETE FROM conversions.{table}")

    account = await flows.balance(ada)
    assert (account.available, account.reserved, account.credits_today) == (0, 0, 0)
    kinds = [entry.kind for entry in await flows.entries(ada, job_id=made.id)]
    assert kinds == [RESERVE, RELEASE]


CREDITS, CALLERS, JOBS_EACH = 90, 32, 5


async def _call(suite: Suite, number: int, outcomes: Counter[str]) -> None:
    """Creates jobs of one credit, as one of many callers of the same owner, and cancels some."""
    dice = random.Random(number)
    client = suite.client("ada")
    for _ in range(JOBS_EACH):
        try:
            made = await flows.analyse_facts(client, wait=False)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            assert refusal.reason == "CREDITS_EXHAUSTED", refusal
            outcomes["refused"] += 1
            await asyncio.sleep(dice.uniform(0, 0.2))
            continue
        outcomes["created"] += 1
        if dice.random() < 0.4:
            request = analysis_pb2.CancelAnalysisRequest(
                request_id=request_id(), analysis_id=made.id
            )
            await flows.analyses(client).CancelAnalysis(request)


async def _ended(client: Client, number: int) -> list[job_pb2.Job]:
    async with asyncio.timeout(60):
        while True:
            request = job_pb2.ListJobsRequest(page_size=1000)
            jobs = list((await flows.jobs(client).ListJobs(request)).jobs)
            if len(jobs) == number and all(job.state in flows.FINISHED for job in jobs):
                return jobs
            await asyncio.sleep(0.1)


@pytest.mark.long
async def test_many_callers_and_workers_of_one_owner_spend_no_more_than_there_is(
    suite: Suite,
) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite)
    ada = suite.client("ada")
    await flows.grant(suite, CREDITS)
    outcomes: Counter[str] = Counter()

    callers = [asyncio.create_task(_call(suite, n, outcomes)) for n in range(CALLERS)]
    while not all(caller.done() for caller in callers):
        assert (await flows.balance(ada)).available >= 0
        if outcomes["created"] > CREDITS // 2 and not outcomes["restarts"]:
            outcomes["restarts"] += 1
            await suite.stop_work("conversions")
            await suite.work("conversions")
        await asyncio.sleep(0.02)
    await asyncio.gather(*callers)
    jobs = await _ended(ada, outcomes["created"])

    assert outcomes["refused"] and outcomes["restarts"], outcomes
    charged = [entry for entry in await flows.entries(ada) if entry.kind == COMMIT]
    completed = {job.id for job in jobs if job.state == job_pb2.JOB_STATE_COMPLETED}
    assert {entry.job_id for entry in charged} == completed
    assert len(charged) == len(completed) == sum(entry.credits for entry in charged)
    account = await flows.balance(ada)
    assert (account.available, account.reserved) == (CREDITS - len(completed), 0)
    sums = [
        sum(getattr(entry, name) for entry in await flows.entries(ada))
        for name in ("available_change", "reserved_change")
    ]
    assert sums == [account.available, account.reserved]
