"""What triggers note of new jobs, migrations note of the jobs of before."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, pool

from tests.suite import ROOT, Cluster

VERSIONS = ROOT / "services/conversions/migrations/versions"
# As the owner of the tables, who leaves policies to the revisions that fill them.
FILLING = """
    SET ROLE conversions_owner;
    SET search_path = conversions;
    {}
    RESET ROLE;
    RESET search_path;
"""
ROWS = """
    INSERT INTO conversions.conversions (id, owner, created_by, user_asset_id, cloth_asset_id,
        style_name, metadata, product_id, free, priority, external)
    VALUES (gen_random_uuid(), 'user:ada', 'ada', gen_random_uuid(), gen_random_uuid(), 'loose',
        '{}', '', false, 5, false);
    INSERT INTO conversions.generations (id, owner, created_by, task, prompt, style, aspect_ratio,
        quality, format, resolution, seed, reference_asset_ids, view, name, product_id, dataset_id,
        state, error_class, processing_time_ms, priority, external)
    VALUES (gen_random_uuid(), 'user:eve', 'eve', 'image', E'A\n Coat ', 'warm', '1:1', 'draft',
        'png', '1K', 7, ARRAY[gen_random_uuid()], '', '', 'p', 'a label', 'failed', 'REFUSED', 80,
        5, true);
    INSERT INTO conversions.analyses (id, owner, created_by, task, images, facts, product_id,
        priority, external)
    VALUES (gen_random_uuid(), 'user:ada', 'ada', 'seo', '[]', '{"product": {}}', '', 5, false);
"""
COUNTED = """
    SELECT owner, job, type, state, processing_time_ms, features, prompt, style, quality, dataset_id
    FROM conversions.counted_jobs ORDER BY job
"""


DIED = """
    UPDATE conversions.analyses SET state = 'failed', error_class = 'TIMED_OUT', provider = 'fal',
        attempt_number = 3;
    UPDATE conversions.conversions SET state = 'failed', error_class = 'BAD_INPUT';
    INSERT INTO conversions.analyses (id, owner, created_by, task, images, facts, product_id,
        priority, external, retry_of)
    SELECT gen_random_uuid(), owner, created_by, task, images, facts, product_id, priority,
        external, id FROM conversions.analyses;
    UPDATE conversions.analyses SET state = 'failed', error_class = 'WORKER_LOST'
        WHERE retry_of IS NOT NULL;
    INSERT INTO conversions.analyses (id, owner, created_by, task, images, facts, product_id,
        priority, external, state, error_class)
    SELECT id, 'user:eve', 'eve', 'seo', '[]', '{}', '', 5, false, 'failed', 'BAD_ANSWER'
        FROM (VALUES (gen_random_uuid()), (gen_random_uuid())) AS new (id);
    DELETE FROM conversions.dead_jobs;
"""
DEAD = """
    SELECT owner, job, task, error_class, provider, attempts, created_at = ended_at
    FROM conversions.dead_jobs
    JOIN (SELECT id, ended_at FROM conversions.analyses) AS ended USING (id)
    ORDER BY owner, error_class
"""
POLICIES = "SELECT count(*) FROM pg_policies WHERE policyname = 'filling'"
Upgrading = tuple[psycopg.Connection[Any], Engine]


@pytest.fixture
def upgrading(cluster: Cluster) -> Iterator[Upgrading]:
    """A database with rows of before."""
    database = cluster.clone()
    url = cluster.url(database)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.NullPool
    )
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(ROWS)
            yield conn, engine
    finally:
        cluster.drop(database)


def test_jobs_of_before_are_counted_and_their_policies_stand(upgrading: Upgrading) -> None:
    conn, engine = upgrading
    conn.execute("DELETE FROM conversions.counted_jobs; DELETE FROM conversions.job_inputs")
    let_fill(conn, "0007_lineage")
    upgrade(engine, "0008_jobs_of_before")
    changed = "UPDATE conversions.counted_jobs SET state = 'pending' WHERE job = 'generations'"
    conn.execute(changed)  # a job that ended while it was counted
    upgrade(engine, "0009_jobs_counted")

    features = ["references", "style", "seed", "outside_worker", "product"]
    made = ("failed", 80, features, "a coat", "warm", "draft", "")
    assert conn.execute(COUNTED).fetchall() == [
        ("user:ada", "analyses", "seo", "pending", 0, ["facts"], "", "", "", ""),
        ("user:ada", "conversions", "paid", "pending", 0, ["style"], "", "", "", ""),
        ("user:eve", "generations", "image", *made),
    ]
    roles = "SELECT job, role FROM conversions.job_inputs ORDER BY job, position"
    assert conn.execute(roles).fetchall() == [
        ("conversions", "user"),
        ("conversions", "cloth"),
        ("generations", "reference"),
    ]
    assert conn.execute(POLICIES).fetchone() == (0,)


def test_jobs_that_died_before_are_noted_while_servers_go_on(upgrading: Upgrading) -> None:
    conn, engine = upgrading
    conn.execute(DIED)
    let_fill(conn, "0014_operators")
    with upgraded(engine, "0015_died_before"), conn.transaction():
        # As calls do while the fill hasn't committed: they wait for no lock.
        conn.execute("SET LOCAL lock_timeout = '100ms'")
        conn.execute("SELECT FROM conversions.generations, conversions.conversions")
        conn.execute(
            "UPDATE conversions.analyses SET deleted_at = now(), expires_at = now() WHERE id ="
            " (SELECT id FROM conversions.analyses WHERE error_class = 'BAD_ANSWER' LIMIT 1)"
        )
    assert len(conn.execute(DEAD).fetchall()) == 3
    upgrade(engine, "0016_deaths_checked")

    assert conn.execute(DEAD).fetchall() == [
        ("user:ada", "analyses", "analysis.seo", "WORKER_LOST", "", 0, True),
        ("user:eve", "analyses", "analysis.seo", "BAD_ANSWER", "", 0, True),
    ]
    assert conn.execute(POLICIES).fetchone() == (0,)


def let_fill(conn: psycopg.Connection[Any], revision: str) -> None:
    """Adds the policies that this revision leaves to the next ones."""
    _, marker, policies = (VERSIONS / f"{revision}.sql").read_text().partition("policies bind too.")
    assert marker
    conn.execute(FILLING.format(policies).encode())


def upgrade(engine: Engine, revision: str) -> None:
    with upgraded(engine, revision):
        pass


@contextmanager
def upgraded(engine: Engine, revision: str) -> Iterator[None]:
    """Runs a revision, which commits at the end of the block."""
    module = importlib.import_module(f"services.conversions.migrations.versions.{revision}")
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE conversions_owner")
        connection.exec_driver_sql("SET LOCAL search_path = conversions")
        with Operations.context(MigrationContext.configure(connection)):
            module.upgrade()
        yield
