"""Statements whose rows have a type.

    @dataclass(slots=True)
    class Quota:                         # a row: one field per selected column, of the same name
        owner: str
        max_bytes: int | None            # a column that may be NULL

    class LockedQuota(Quota):            # a row that the transaction locks until it ends
        __slots__ = ()

    QUOTAS = Table("quotas", LockedQuota)
    _SELECT_QUOTA = Statement(Quota, f"SELECT {QUOTAS.columns} FROM quotas WHERE owner = %(owner)s")
    _COUNT_QUOTAS = Statement(int, "SELECT count(*) FROM quotas")
    _DELETE_QUOTA = Command("DELETE FROM quotas WHERE owner = %(owner)s")

    quota = await db.first(_SELECT_QUOTA, {"owner": owner})       # Quota | None
    quota = await m.one(QUOTAS.insert("owner", "max_bytes"), values)     # LockedQuota

A fixed statement is written as SQL, once, as a constant of its module: tests/test_statements.py
lets a real Postgres prepare each and compares the columns that it describes with the row class.
A statement assembled at run time is built with SQLAlchemy Core (`Table.core`), compiled once per
shape (`compiled`) and kept. psycopg runs both. Decision 1 says why.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Generic, LiteralString, TypeVar

import sqlalchemy as sa
from psycopg.pq.abc import PGresult
from psycopg.rows import no_result
from sqlalchemy.dialects.postgresql import psycopg as sa_psycopg

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_DIALECT = sa_psycopg.dialect()
_Make = Callable[[Sequence[Any]], R]  # takes one row's values, typed by psycopg per column


class Command:
    """A statement that returns no rows. Its text has psycopg placeholders such as `%(name)s`;
    `numbered` is the text as Postgres takes it, with `$1 ...`, and `names` are its parameters in
    that order. `uses` counts how often it was sent unprepared."""

    __slots__ = ("module", "names", "numbered", "text", "uses")

    def __init__(self, text: str, *, constant: bool = True) -> None:
        self.text: LiteralString = text
        self.numbered, self.names = _numbered(text)
        self.uses = 0
        self.module = _caller()
        if constant:
            CONSTANTS.append(self)


class Statement(Command, Generic[R_co]):
    """A statement that returns rows of one type: a dataclass with a field per column or, for a
    single column that is never NULL, the type of its values."""

    __slots__ = ("_make", "row")

    def __init__(self, row: type[R_co], text: str, *, constant: bool = True) -> None:
        super().__init__(text, constant=constant)
        self.row = row
        self._make: _Make[R_co] | None = None

    def row_factory(self, cursor: Any) -> _Make[R_co]:  # any kind of psycopg cursor
        """Implements psycopg's row factory."""
        if cursor.pgresult is None or not cursor.pgresult.nfields:
            return no_result
        return self.maker(cursor.pgresult)

    def maker(self, result: PGresult) -> _Make[R_co]:
        """Returns what makes a row of a result's values. A statement's columns never change, so
        they are read once."""
        if self._make is None:
            names = [result.fname(number) or b"" for number in range(result.nfields)]
            self._make = _maker(self.row, tuple(name.decode() for name in names))
        return self._make


_PLACE = re.compile(r"%%|%\((\w+)\)s")


def _numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        return f"${names.setdefault(match[1], len(names) + 1)}"

    return _PLACE.sub(number, text).encode(), tuple(names)


CONSTANTS: list[Command] = []
"""All statements that are written as SQL, in the order in which their modules were imported."""


def _caller() -> str:
    """Returns the name of the module that defines a statement."""
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
    """A table and its row class, whose fields are the columns that this code uses. `R` is the row
    that writing statements return: pass the class of locked rows if there is one.

    `columns` lists all column names, for constants; `core` is the table for SQLAlchemy Core.
    """

    def __init__(self, name: str, row: type[R]) -> None:
        self.name = name
        self.row = row
        self.names = field_names(row)
        self.columns = ", ".join(self.names)
        # Columns have no types here: psycopg adapts the values, and SQLAlchemy adds no casts.
        self.core = sa.table(name, *map(sa.column, self.names))
        TABLES.append(self)

    def of(self, alias: str) -> str:
        """Returns all columns, qualified with the table's `alias` in a statement."""
        return ", ".join(f"{alias}.{name}" for name in self.names)

    @cache  # noqa: B019 - tables live as long as the process
    def insert(self, *columns: str) -> Statement[R]:
        """Returns an INSERT with these columns, each bound by its name, that returns the whole
        row."""
        values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
        return compiled(self.row, sa.insert(self.core).values(values).returning(*self.core.c))


TABLES: list["Table[Any]"] = []
"""All tables, in the order in which their modules were imported."""


def compiled(row: type[R], core: sa.Executable) -> Statement[R]:
    """Compiles a Core statement. Building and compiling one takes a millisecond, so callers keep
    the result per shape."""
    return Statement(row, _text(core), constant=False)


def command(core: sa.Executable) -> Command:
    """Compiles a Core statement that returns no rows; see `compiled`."""
    return Command(_text(core), constant=False)


def _text(core: sa.Executable) -> str:
    return str(core.compile(dialect=_DIALECT))  # type: ignore[attr-defined]
