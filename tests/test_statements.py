"""A real Postgres prepares every statement of the services. Its description is compared with the
class that the rows are read into, and every row class with its table."""

import importlib
import pkgutil
import re
import types
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

import services
import shared
from shared.database.rows import CONSTANTS, TABLES, Command, Statement, Table
from tests.suite import Cluster, built_services

# The Python types that psycopg makes of a Postgres type. JSON may be anything; its class says what
# was stored.
_JSON = (dict, list, str, float, Mapping)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "bytea": (bytes,),
    "date": (date,),
    "float4": (float,),
    "float8": (float,),
    "inet": (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface),
    "int2": (int,),
    "int4": (int,),
    "int8": (int,),
    "interval": (timedelta,),
    "json": _JSON,
    "jsonb": _JSON,
    "name": (str,),
    "numeric": (Decimal,),
    "text": (str,),
    "timestamptz": (datetime,),
    "uuid": (UUID,),
    "varchar": (str,),
}


def _load() -> None:
    for package in (shared, services):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)


_load()
_OURS = ("services.", "shared.")
STATEMENTS = [made for made in CONSTANTS if made.module.startswith(_OURS)]
OURS = [table for table in TABLES if table.row.__module__.startswith(_OURS)]


def _service(module: str) -> str:
    """Returns the service whose schema a statement or a table belongs to. Shared ones are in every
    schema."""
    parts = module.split(".")
    return parts[1] if parts[0] == "services" else "assets"


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Iterator[str]:
    name = cluster.clone()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture(scope="module")
def connections(database: str) -> Iterator[dict[str, "psycopg.Connection[Any]"]]:
    found = {}
    for service in built_services():
        options = f"-c search_path={service},{service}_jobs"
        found[service] = psycopg.connect(database, autocommit=True, options=options)
    yield found
    for connection in found.values():
        connection.close()


def _prepared(connection: "psycopg.Connection[Any]", text: str) -> PGresult:
    """Returns Postgres's description of the statement's result."""
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        name = match[1] or str(len(numbers))
        return f"${numbers.setdefault(name, len(numbers) + 1)}"

    pgconn = connection.pgconn
    sent = re.sub(r"%%|%\((\w+)\)s|%s", numbered, text)
    made = pgconn.prepare(b"probe", sent.encode())
    assert made.status == ExecStatus.COMMAND_OK, f"{made.error_message.decode()}\n{text}"
    described = pgconn.describe_prepared(b"probe")
    pgconn.exec_(b"DEALLOCATE probe")
    return described


def _type_name(connection: "psycopg.Connection[Any]", oid: int) -> str:
    row = connection.execute("SELECT typname FROM pg_type WHERE oid = %s", (oid,)).fetchone()
    assert row is not None
    return str(row[0])


def _nullable(connection: "psycopg.Connection[Any]", table: int, column: int) -> bool:
    """Returns whether the column may be NULL. False for computed columns too: nothing is known of
    them."""
    found = connection.execute(
        "SELECT NOT attnotnull FROM pg_attribute WHERE attrelid = %s AND attnum = %s",
        (table, column),
    ).fetchone()
    return bool(found and found[0])


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a field may have, from a union or a single type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _optional(hint: Any) -> bool:
    return type(None) in _kinds(hint)


def _fits(name: str, hint: Any) -> bool:
    """Returns whether values of a Postgres type fit a field's type, apart from None."""
    kinds = [kind for kind in _kinds(hint) if kind is not type(None)]
    if name.startswith("_"):
        return all(
            get_origin(kind) is list and _fits(name[1:], get_args(kind)[0]) for kind in kinds
        )
    if name in ("json", "jsonb") and kinds == [Any]:
        return True
    return name in _TYPES and all((get_origin(kind) or kind) in _TYPES[name] for kind in kinds)


def _hints(statement: "Statement[Any]", names: list[str]) -> dict[str, Any]:
    hints = get_type_hints(statement.row)
    return hints if hasattr(statement.row, "__dataclass_fields__") else {names[0]: statement.row}


@pytest.mark.parametrize(
    "statement", STATEMENTS, ids=[f"{made.module}:{made.text.split()[0]}" for made in STATEMENTS]
)
def test_a_statement_answers_what_its_row_class_says(
    statement: Command, connections: dict[str, "psycopg.Connection[Any]"]
) -> None:
    connection = connections[_service(statement.module)]
    described = _prepared(connection, statement.text)
    if not isinstance(statement, Statement):
        return
    names = [(described.fname(n) or b"").decode() for n in range(described.nfields)]
    hints = _hints(statement, names)
    assert sorted(names) == sorted(hints), statement.text

    for number, name in enumerate(names):
        hint = hints[name]
        kind = _type_name(connection, described.ftype(number))
        assert _fits(kind, hint), f"{name} is {kind}, and {hint} in {statement.row.__name__}"
        may_be_null = _nullable(connection, described.ftable(number), described.ftablecol(number))
        assert _optional(hint) or not may_be_null, f"{name} of {statement.row.__name__} may be NULL"


@pytest.mark.parametrize("table", OURS, ids=[table.name for table in OURS])
def test_a_row_class_has_the_columns_of_its_table(
    table: "Table[Any]",
    database: str,
    connections: dict[str, "psycopg.Connection[Any]"],
) -> None:
    service = _service(table.row.__module__)
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connections[service], poolclass=sa.StaticPool
    )
    columns = {row["name"]: row for row in sa.inspect(engine).get_columns(table.name, service)}
    hints = get_type_hints(table.row)
    assert set(hints) - set(columns) == set(), (
        f"the table lacks what {table.row.__name__} has: add each to tables.sql and a migration"
    )

    described = _prepared(connections[service], f"SELECT {table.columns} FROM {table.name}")
    for number, (name, hint) in enumerate(hints.items()):
        kind = _type_name(connections[service], described.ftype(number))
        assert _fits(kind, hint), f"{name} is {kind} in the table, and {hint} in its row class"
        assert _optional(hint) == columns[name]["nullable"], (
            f"{name}: the row class has `| None` exactly if the table allows NULL"
        )
