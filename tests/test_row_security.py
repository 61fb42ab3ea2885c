"""Row-level security is on every table, and the serving role can't bypass it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import psycopg
import pytest

from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth
from tests.suite import (
    APP_PASSWORD,
    WORKER_PASSWORD,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    built_services,
    running_suite,
)

SERVICES = built_services()
LOGINS = [f"{service}_{role}" for service in SERVICES for role in ("app", "worker")]
_TABLES = """
    SELECT n.nspname || '.' || c.relname AS name, c.relrowsecurity, c.relforcerowsecurity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY(%s)
"""


OWNERS = Statement(str, "SELECT owner FROM assets")


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """One database for all of these tests, with rows of two owners. No test changes what another
    sees."""
    async with running_suite(cluster, keys, disk) as suite:
        fill(suite)
        yield suite


def schemas(service: str) -> list[str]:
    return [service, f"{service}_jobs"]


def connect(suite: Suite, role: str) -> psycopg.Connection[tuple[object, ...]]:
    password = APP_PASSWORD if role.endswith("_app") else WORKER_PASSWORD
    return psycopg.connect(suite.cluster.url(suite.database, role, password), autocommit=True)


@pytest.mark.parametrize("service", SERVICES)
async def test_every_table_enables_and_forces_it(suite: Suite, service: str) -> None:
    tables = suite.sql(_TABLES, (schemas(service),))
    assert len(tables) > 8
    assert [name for name, enabled, forced in tables if not (enabled and forced)] == [], (
        "tables.sql and a migration must ENABLE and FORCE ROW LEVEL SECURITY on each"
    )


async def test_there_is_no_table_outside_the_schemas_of_the_services(suite: Suite) -> None:
    outside = suite.sql(
        "SELECT schemaname, tablename FROM pg_tables WHERE NOT schemaname = ANY(%s)",
        (
            [
                *(name for service in SERVICES for name in schemas(service)),
                "pg_catalog",
                "information_schema",
            ],
        ),
    )

    assert outside == []


@pytest.mark.parametrize("role", LOGINS)
async def test_a_login_owns_bypasses_and_truncates_nothing(suite: Suite, role: str) -> None:
    [attributes] = suite.sql(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles"
        " WHERE rolname = %s",
        (role,),
    )
    assert not any(attributes)

    owned = """
        SELECT 'class', relname::text FROM pg_class WHERE relowner = %(role)s::regrole
        UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE nspowner
            = %(role)s::regrole
        UNION ALL SELECT 'function', proname::text FROM pg_proc WHERE proowner = %(role)s::regrole
    """
    assert suite.sql(owned, {"role": role}) == []

    # TRUNCATE ignores policies; TRIGGER and REFERENCES allow a look at others' rows; MAINTAIN locks
    # tables.
    granted = suite.sql(
        "SELECT c.oid::regclass::text, p"
        " FROM pg_class c, unnest(ARRAY['TRUNCATE', 'TRIGGER', 'REFERENCES', 'MAINTAIN']) AS p"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relnamespace::regnamespace::text = ANY(%s)"
        " AND has_table_privilege(%s, c.oid, p)",
        ([name for service in SERVICES for name in schemas(service)], role),
    )
    assert granted == []
    assert [
        s
        for s in SERVICES
        if suite.sql("SELECT has_schema_privilege(%s, %s, 'CREATE')", (role, s))[0][0]
    ] == []


@pytest.mark.parametrize("role", LOGINS)
async def test_a_login_can_become_no_other_role_and_sees_no_other_service(
    suite: Suite, role: str
) -> None:
    members = suite.sql(
        "SELECT rolname FROM pg_roles WHERE rolname <> %(role)s AND pg_has_role(%(role)s, oid,"
        " 'MEMBER')",
        {"role": role},
    )
    assert members == []

    service = role.rpartition("_")[0]
    reachable = suite.sql(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND has_schema_privilege(%s, oid,"
        " 'USAGE')",
        (role,),
    )
    assert {name for (name,) in reachable} <= {*schemas(service), "public", "information_schema"}
    with connect(suite, role) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(f"SET ROLE {service}_owner")


async def test_the_serving_role_cannot_become_the_worker(suite: Suite) -> None:
    for service in SERVICES:
        with (
            connect(suite, f"{service}_app") as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            conn.execute(f"SET ROLE {service}_worker")


@pytest.mark.parametrize("service", SERVICES)
async def test_the_owner_of_the_tables_is_no_login_and_is_bound_by_the_policies_too(
    suite: Suite, service: str
) -> None:
    [attributes] = suite.sql(
        "SELECT rolcanlogin, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = %s",
        (f"{service}_owner",),
    )
    assert not any(attributes)


async def test_definers_functions_and_views_do_not_open_a_back_door(suite: Suite) -> None:
    names = [name for service in SERVICES for name in schemas(service)]
    assert (
        suite.sql(
            "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace::regnamespace::text ="
            " ANY(%s)",
            (names,),
        )
        == []
    )

    assert (
        suite.sql(
            "SELECT relname FROM pg_class WHERE relkind IN ('v', 'm') AND"
            " relnamespace::regnamespace::text = ANY(%s) AND NOT coalesce(reloptions::text, '')"
            " LIKE '%%security_invoker=true%%'",
            (names,),
        )
        == []
    )


def fill(suite: Suite) -> None:
    for owner in ("user:ada", "user:bob"):
        suite.sql(
            "INSERT INTO assets.assets (id, owner, created_by, kind, public, free, file_name,"
            " size_bytes, mime_type) VALUES (gen_random_uuid(), %s, 'x', 'photo', false, true, 'a',"
            " 1, 'image/jpeg')",
            (owner,),
        )
        suite.sql(
            "INSERT INTO assets.requests (owner, actor, method, request_id, body_hash, answer)"
            " VALUES (%s, 'x', 'm', '1', '', '')",
            (owner,),
        )
        suite.sql(
            "INSERT INTO assets.events (owner, subject, subject_id, version, type, payload)"
            " VALUES (%s, 'asset', gen_random_uuid(), 1, 't', '')",
            (owner,),
        )


@pytest.mark.parametrize("service", SERVICES)
async def test_without_an_owner_the_serving_role_sees_no_row_of_anybody(
    suite: Suite, service: str
) -> None:
    owned = suite.sql(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname ="
        " 'owner' WHERE c.relkind = 'r' AND c.relnamespace = %s::regnamespace",
        (service,),
    )

    assert len(owned) > 3
    with connect(suite, f"{service}_app") as conn:
        for context in (None, "", "user:nobody", "%", "user:%"):
            if context is not None:
                conn.execute("SELECT set_config('app.owner_id', %s, false)", (context,))
            for (table,) in owned:
                [(count,)] = conn.execute(f"SELECT count(*) FROM {service}.{table}")
                assert count == 0, (table, context)


async def test_an_owner_sees_only_its_rows_and_writes_only_its_own(suite: Suite) -> None:
    with connect(suite, "assets_app") as conn:
        conn.execute("SELECT set_config('app.owner_id', 'user:ada', false)")
        assert conn.execute("SELECT owner FROM assets.assets").fetchall() == [("user:ada",)]
        assert conn.execute("UPDATE assets.assets SET free = false").rowcount == 1
        assert conn.execute("DELETE FROM assets.requests WHERE owner = 'user:bob'").rowcount == 0

        for statement in (
            "UPDATE assets.assets SET owner = 'user:bob'",
            "INSERT INTO assets.requests VALUES ('user:bob', 'x', 'm', '2', '', '')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("TRUNCATE assets.requests")


async def test_the_owner_of_one_transaction_is_gone_in_the_next_on_the_same_connection(
    suite: Suite,
) -> None:
    db = Database(suite.settings("assets", "app"), "assets", pool_size=1)
    await db.open()
    try:
        as_owner("user:ada")
        assert await db.all(OWNERS) == ["user:ada"]
        assert await db.system_all(OWNERS) == []
        async with db.transaction("user:bob") as m:
            assert await m.all(OWNERS) == ["user:bob"]
        assert await db.system_all(OWNERS) == []

        with suppress(ZeroDivisionError):
            async with db.transaction("user:bob") as m:
                await m.all(OWNERS)
                raise ZeroDivisionError
        assert await db.system_all(OWNERS) == []
        with pytest.raises(psycopg.errors.UndefinedTable):
            await db.all(Statement(str, "SELECT owner FROM no_such_table"))
        assert await db.system_all(OWNERS) == []
    finally:
        await db.close()


async def test_a_cancelled_call_leaves_no_owner_behind(suite: Suite) -> None:
    db = Database(suite.settings("assets", "app"), "assets", pool_size=1)
    await db.open()

    try:
        as_owner("user:ada")
        for text in ("SELECT pg_sleep(30)::text", "SELECT owner || pg_sleep(30) FROM assets"):
            statement = Statement(str, text)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await db.all(statement)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), db.transaction("user:ada") as m:
                    await m.all(statement)
            assert await db.system_all(OWNERS) == []
    finally:
        await db.close()


def as_owner(owner: str) -> None:
    auth.enter(auth.Identity(actor="tests", owner=owner, role="user", expires_at=2**40))
