"""Statements whose rows have a type.

    @dataclass(slots=True)
    class Quota:                         # a row: a field per column that is read, by its name
        owner: str
        max_bytes: int | None            # a column that may be NULL

    class LockedQuota(Quota):            # a row that the transaction holds, until it ends
        __slots__ = ()

    QUOTAS = Table("quotas", LockedQuota)
    _SELECT_QUOTA = Statement(Quota, f"SELECT {QUOTAS.columns} FROM quotas WHERE owner = %(owner)s")
    _COUNT_QUOTAS = Statement(int, "SELECT count(*) FROM quotas")
    _DELETE_QUOTA = Command("DELETE FROM quotas WHERE owner = %(owner)s")

    quota = await db.first(_SELECT_QUOTA, {"owner": owner})       # Quota | None
    quota = await m.one(QUOTAS.insert("owner", "max_bytes"), values)     # LockedQuota

What doesn't change is written as SQL, once, as a constant of its module: tests/test_statements.py
has a real Postgres prepare each, and holds the columns that it describes against the row class.
What is put together at run time is built by SQLAlchemy Core (`Table.core`), compiled once per shape
(`compiled`) and kept. psycopg runs both. Decision 1 says why.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Generic, LiteralString, TypeVar

import sqlalchemy as sa
from psycopg.rows import no_result
from sqlalchemy.dialects.postgresql import psycopg as sa_psycopg

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_DIALECT = sa_psycopg.dialect()
_Make = Callable[[Sequence[Any]], R]  # psycopg's values of one row have the columns' types


class Command:
    """A statement without rows. Its text has psycopg's placeholders, such as `%(name)s`."""

    __slots__ = ("module", "text")

    def __init__(self, text: str, *, constant: bool = True) -> None:
        self.text: LiteralString = text
        self.module = _caller()
        if constant:
            CONSTANTS.append(self)


class Statement(Command, Generic[R_co]):
    """A statement with rows of one type: a dataclass with a field per column, or, for a single
    column that is never NULL, the type of its values."""

    __slots__ = ("_make", "row")

    def __init__(self, row: type[R_co], text: str, *, constant: bool = True) -> None:
        super().__init__(text, constant=constant)
        self.row = row
        self._make: _Make[R_co] | None = None

    def row_factory(self, cursor: Any) -> _Make[R_co]:  # of every kind of psycopg's cursors
        """For psycopg. The columns of a statement are always the same, so they are looked at
        once."""
        result = cursor.pgresult
        if result is None or not result.nfields:
            return no_result
        if self._make is None:
            names = [result.fname(number) or b"" for number in range(result.nfields)]
            self._make = _maker(self.row, tuple(name.decode() for name in names))
        return self._make


CONSTANTS: list[Command] = []
"""All that are written as SQL, in the order in which their modules were imported."""


def _caller() -> str:
    """The module that makes a statement."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"] == __name__:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


def _maker(row: type[R], names: tuple[str, ...]) -> _Make[R]:
    if not is_dataclass(row):
        if len(names) != 1:
            raise TypeError(f"a row of {names} is no {row.__name__}")
        return itemgetter(0)
    wanted = field_names(row)
    if wanted == names:
        return lambda values: row(*values)
    if sorted(wanted) != sorted(names):
        wrong = sorted(set(wanted) ^ set(names)) or "a name that comes twice"
        raise TypeError(f"columns and fields of {row.__name__} differ: {wrong}")
    in_order: Callable[[Sequence[Any]], Sequence[Any]] = itemgetter(*map(names.index, wanted))
    return lambda values: row(*in_order(values))


def field_names(row: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(row))


class Table(Generic[R]):
    """A table and its row class, whose fields are the columns that this code knows. `R` is what
    statements that write return, so that a class of locked rows belongs here where there is one.

    `columns` names them all, for constants; `core` is the table for SQLAlchemy Core.
    """

    def __init__(self, name: str, row: type[R]) -> None:
        self.name = name
        self.row = row
        self.names = field_names(row)
        self.columns = ", ".join(self.names)
        # Columns without types: values are sent as psycopg adapts them, and nothing is cast.
        self.core = sa.table(name, *map(sa.column, self.names))
        TABLES.append(self)

    def of(self, alias: str) -> str:
        """All columns, of a table that a statement calls `alias`."""
        return ", ".join(f"{alias}.{name}" for name in self.names)

    @cache  # noqa: B019 - tables live as long as the process
    def insert(self, *columns: str) -> Statement[R]:
        """Inserts a row of these columns, each bound by its name; returns the whole row."""
        values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
        return compiled(self.row, sa.insert(self.core).values(values).returning(*self.core.c))


TABLES: list["Table[Any]"] = []
"""All tables, in the order in which their modules were imported."""


def compiled(row: type[R], core: sa.Executable) -> Statement[R]:
    """A statement of Core's. Building and compiling one take a millisecond: whoever calls this
    keeps what it returns, per shape."""
    text = str(core.compile(dialect=_DIALECT))  # type: ignore[attr-defined]
    return Statement(row, text, constant=False)


def command(core: sa.Executable) -> Command:
    """As `compiled`, without rows."""
    text = str(core.compile(dialect=_DIALECT))  # type: ignore[attr-defined]
    return Command(text, constant=False)
