"""The schema is what tables.sql says, migrations make exactly that, and rules, CHECK constraints
and enums agree."""

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from shared.rpc.protos import EnumNames
from tests.schema_words.webhooks import WORDS as WEBHOOK_WORDS
from tests.suite import ROOT, TEMPLATE, Cluster, built_services

SERVICES = built_services()

# Everything that a reader of tables.sql expects to find in the database, each as rows of text.
_CATALOGUE = {
    "columns": (
        """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            a.attidentity,
               a.attgenerated, pg_get_expr(d.adbin, d.adrelid), co.collname
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_collation co ON co.oid = a.attcollation
        WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND c.relnamespace
            = %(schema)s::regnamespace
    """
    ),
    "constraints": (
        """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated
            FROM pg_constraint
        WHERE connamespace = %(schema)s::regnamespace
    """
    ),
    "indexes": (
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = %(schema)s"
    ),
    "policies": (
        """
        SELECT tablename, policyname, permissive, roles::text, cmd, qual, with_check
            FROM pg_policies
        WHERE schemaname = %(schema)s
    """
    ),
    "security": (
        """
        SELECT relname, relrowsecurity, relforcerowsecurity, relpersistence, reloptions::text
            FROM pg_class
        WHERE relkind = 'r' AND relnamespace = %(schema)s::regnamespace
    """
    ),
    "triggers": (
        """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(t.oid) FROM pg_trigger t
        JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal AND c.relnamespace
            = %(schema)s::regnamespace
    """
    ),
    "functions": (
        """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace
            = %(schema)s::regnamespace
    """
    ),
    "sequences": (
        "SELECT sequencename, start_value, increment_by FROM pg_sequences WHERE schemaname ="
        " %(schema)s"
    ),
}


def catalogue(url: str, schema: str) -> dict[str, list[str]]:
    with psycopg.connect(url) as conn:
        conn.execute("SELECT set_config('search_path', %s, false)", (schema,))
        return {
            name: sorted(str(row) for row in conn.execute(query, {"schema": schema}))
            for name, query in _CATALOGUE.items()
        }


@contextmanager
def from_tables_sql(cluster: Cluster, service: str) -> Iterator[str]:
    """Makes a database from shared/database/tables.sql and the service's own tables.sql alone.
    Yields its URL."""
    name = f"tables_{service}"
    with psycopg.connect(cluster.admin_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    try:
        with psycopg.connect(cluster.url(name)) as conn:
            conn.execute(f"CREATE SCHEMA {service} AUTHORIZATION {service}_owner")
            conn.execute(f"SET ROLE {service}_owner; SET search_path = {service}")
            # Alembic makes this table; the policies name it.
            conn.execute(
                "CREATE TABLE alembic_version"
                " (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY)"
            )
            for path in (
                ROOT / "shared/database/tables.sql",
                ROOT / "services" / service / "tables.sql",
            ):
                conn.execute(path.read_text().replace("{service}", service))
        yield cluster.url(name)
    finally:
        cluster.drop(name)


@pytest.mark.parametrize("service", SERVICES)
def test_migrations_make_what_tables_sql_says(cluster: Cluster, service: str) -> None:
    migrated = catalogue(cluster.url(TEMPLATE), service)
    with from_tables_sql(cluster, service) as url:
        written = catalogue(url, service)
    assert len(written["columns"]) > 30 and len(written["policies"]) > 8
    for part, rows in written.items():
        alone = sorted(set(migrated[part]) - set(rows)), sorted(set(rows) - set(migrated[part]))
        assert migrated[part] == rows, (
            f"{part}: the migrations alone make {alone[0]}, tables.sql alone makes {alone[1]}. A"
            " column that a migration adds is the last one of its table, in tables.sql too"
        )


@pytest.mark.parametrize("service", SERVICES)
def test_migrating_again_changes_nothing(cluster: Cluster, service: str) -> None:
    from shared.database.migrate import migrate
    from tests.suite import APP_PASSWORD, WORKER_PASSWORD

    database = cluster.clone()
    try:
        before = catalogue(cluster.url(database), service)
        migrate(service, cluster.url(database), APP_PASSWORD, WORKER_PASSWORD)
        assert catalogue(cluster.url(database), service) == before
    finally:
        cluster.drop(database)


def checked_words(cluster: Cluster, table: str, column: str) -> set[str]:
    """Returns the words that the CHECK constraint on a text column allows."""
    with psycopg.connect(cluster.url(TEMPLATE)) as conn:
        found = conn.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND"
            " contype = 'c' AND pg_get_constraintdef(oid) ~ %s",
            (table, rf"^CHECK \(\({column} = ANY \(ARRAY"),
        ).fetchall()
    assert len(found) == 1, f"{table}.{column}: {found}"
    return set(re.findall(r"'([a-z0-9_]+)'::text", found[0][0]))


def is_machine(words: Any) -> bool:
    return isinstance(words, Mapping) and all(
        isinstance(targets, frozenset) for targets in words.values()
    )


def machine_words(machine: Mapping[str, Collection[str]]) -> set[str]:
    unknown = {target for targets in machine.values() for target in targets} - set(machine)
    assert not unknown, f"targets that are no state: {unknown}"
    return set(machine)


def declared(service: str) -> list[tuple[str, str, Any, EnumNames | None]]:
    """Returns (table, column, machine or set of words in rules.py, enum words) of every column of
    words."""
    return [*importlib.import_module(f"tests.schema_words.{service}").WORDS, *WEBHOOK_WORDS]


@pytest.mark.parametrize("service", SERVICES)
def test_enum_check_constraint_and_transition_table_have_the_same_words(
    cluster: Cluster, service: str
) -> None:
    for table, column, words, enum in declared(service):
        allowed = checked_words(cluster, f"{service}.{table}", column)
        if words is not None:
            assert allowed == (machine_words(words) if is_machine(words) else set(words)), (
                table,
                column,
            )
        if enum is not None:
            assert allowed == set(enum.number), (table, column)


@pytest.mark.parametrize("service", SERVICES)
def test_every_column_of_words_is_compared(cluster: Cluster, service: str) -> None:
    with psycopg.connect(cluster.url(TEMPLATE)) as conn:
        found = conn.execute(
            "SELECT conrelid::regclass::text, substring(pg_get_constraintdef(oid) FROM '^CHECK"
            " \\(\\(([a-z_]+) = ANY') FROM pg_constraint WHERE contype = 'c' AND connamespace ="
            " %s::regnamespace AND pg_get_constraintdef(oid) ~ '^CHECK \\(\\([a-z_]+ = ANY"
            " \\(ARRAY'",
            (service,),
        ).fetchall()

    columns = {(table.partition(".")[2], column) for table, column in found}
    compared = {(table, column) for table, column, _, _ in declared(service)}
    # attempts.outcome is shared: no enum has its words unless the service shows its attempts.
    assert columns - compared <= {("attempts", "outcome")}
