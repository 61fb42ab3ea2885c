"""The older application's table of analyses: which columns it has; reading and writing rows.

Its database belongs to somebody else. So its columns are looked up before they are used, every
statement has a time limit, and what can't be read or written is said by name.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.rows import class_row, dict_row
from sqlalchemy.dialects import postgresql

from shared.formats.texts import storable_json
from shared.settings import Settings

_IDS = frozenset({"text", "varchar", "bpchar", "citext", "uuid", "int2", "int4", "int8"})
_JSON = frozenset({"json", "jsonb", "text", "varchar"})
_NUMBERS = frozenset({"float4", "float8", "numeric", "int2", "int4", "int8"})
_TIMES = frozenset({"timestamptz", "timestamp"})
_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 10
_ONE: sa.ColumnElement[int] = sa.literal_column("1")
_DIALECT = postgresql.psycopg.dialect()


@dataclass(frozen=True)
class _Field:
    column: str  # the name unless the settings have another
    types: frozenset[str]
    needed: bool = False


FIELDS: Mapping[str, _Field] = {
    "id": _Field("id", _IDS),
    "owner": _Field("user_id", _IDS, needed=True),
    "product_id": _Field("product_idea_id", _IDS, needed=True),
    "revision_id": _Field("revision_id", _IDS, needed=True),
    "view_type": _Field("view_type", _IDS, needed=True),
    "analysis": _Field("analysis_data", _JSON, needed=True),
    "model": _Field("ai_model_used", _IDS),
    "confidence": _Field("confidence_score", _NUMBERS),
    "create_time": _Field("created_at", _TIMES),
    "update_time": _Field("updated_at", _TIMES),
}
KEY = ("owner", "product_id", "revision_id", "view_type")

_SELECT_COLUMNS = """
    SELECT a.attname AS name, t.typname AS type, t.typtype = 'e' AS is_enum,
        format_type(a.atttypid, a.atttypmod) AS spelled
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped
"""


class OldTableWrong(Exception):
    """The table can't be used. `problems`: what is wrong with it or with the settings."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class ValueRefused(Exception):
    """The table doesn't take a row, or a row of it can't be read."""


@dataclass(slots=True)
class OldRow:
    """A row of the table, as its columns hold it. A column that isn't there is None."""

    id: str | None
    owner: str | None
    product_id: str | None
    revision_id: str | None
    view_type: str | None
    analysis: Any  # JSON, or a text of it
    model: str | None
    confidence: float | None
    create_time: datetime | None
    update_time: datetime | None


@dataclass(frozen=True)
class OldAnalysis:
    """An analysis in our terms. `confidence`: 0 to 1, or None."""

    owner: str
    product_id: str
    revision_id: str
    view_type: str
    analysis: Mapping[str, Any]
    model: str
    confidence: float | None
    created_at: datetime | None


@dataclass(slots=True)
class _Column:
    name: str
    type: str
    is_enum: bool
    spelled: str


class _Type(sa.types.UserDefinedType[Any]):
    """A type of the other database, as it spells it."""

    cache_ok = True

    def __init__(self, spelled: str) -> None:
        self.spelled = spelled

    def get_col_spec(self, **_: Any) -> str:
        return self.spelled


class OldTable:
    """The table that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.legacy_database_url.get_secret_value()
        self.named = settings.legacy_table
        self._columns = settings.legacy_columns
        self._before, self._after = settings.legacy_owner.split("{}")
        self._certain = settings.legacy_confidence_maximum
        self._shape: _Shape | None = None
        self.reads = bool(self._url) and settings.legacy_reads
        self.writes = bool(self._url) and settings.legacy_writes
        self.configured = bool(self._url)

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """Yields a session. Raises OldTableWrong, or psycopg.Error if the database is away."""
        milliseconds = _STATEMENT_SECONDS * 1000
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="atelier-techfiles-legacy",
            options=f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds // 2}"
            " -c timezone=UTC",
        )
        async with connection:
            connection.prepare_threshold = None
            if self._shape is None:
                self._shape = _Shape(self.named, await self._found(connection))
            yield Session(connection, self._shape)

    async def _found(self, connection: psycopg.AsyncConnection[Any]) -> dict[str, _Column]:
        """Returns the columns of our fields. Raises OldTableWrong."""
        if unknown := sorted(set(self._columns) - set(FIELDS)):
            known = ", ".join(FIELDS)
            raise OldTableWrong([f"LEGACY_COLUMNS names {unknown[0]!r}; the fields are {known}"])
        quoted = ".".join(f'"{part}"' for part in self.named.split("."))
        async with connection.cursor(row_factory=class_row(_Column)) as cursor:
            await cursor.execute(_SELECT_COLUMNS, {"table": quoted})
            there = {column.name: column for column in await cursor.fetchall()}
        if not there:
            raise OldTableWrong([f"there is no table {self.named}, or it may not be read"])
        found, problems = {}, []
        for name, field in FIELDS.items():
            wanted = self._columns.get(name, field.column)
            if wanted in there:
                found[name] = there[wanted]
                if problem := _problem(name, there[wanted], field):
                    problems.append(problem)
            elif field.needed or (wanted and name in self._columns):
                hint = f'name it in LEGACY_COLUMNS: {{"{name}": "..."}}'
                problems.append(f"{name}: the table has no column {wanted!r}; {hint}")
        if problems:
            raise OldTableWrong(problems)
        return found

    async def find(
        self, owner: str, product_id: str, revision_id: str, view_type: str
    ) -> OldAnalysis | None:
        """Returns the newest analysis of one view, or None. Raises OldTableWrong, ValueRefused, or
        psycopg.Error if the database is away."""
        old_owner = self.old_owner(owner)
        if old_owner is None:
            return None
        key = {
            "owner": old_owner,
            "product_id": product_id,
            "revision_id": revision_id,
            "view_type": view_type,
        }
        async with self.session() as session:
            row = await session.find(key)
        return self.read(row) if row else None

    def owner_of(self, old: str) -> str:
        """Returns the owner for what the owner column holds."""
        return f"{self._before}{old}{self._after}"

    def old_owner(self, owner: str) -> str | None:
        """Returns what the owner column holds for an owner, or None if it holds none such."""
        fits = owner.startswith(self._before) and owner.endswith(self._after)
        inner = owner[len(self._before) : len(owner) - len(self._after)] if fits else ""
        return inner or None

    def read(self, row: OldRow) -> OldAnalysis:
        """Returns a row in our terms. Raises ValueRefused."""
        empty = [name for name in KEY if not getattr(row, name)]
        if empty:
            raise ValueRefused(f"{empty[0]} is empty")
        analysis = row.analysis
        if isinstance(analysis, str):
            try:
                analysis = json.loads(analysis)
            except (ValueError, RecursionError):
                raise ValueRefused("its analysis isn't JSON") from None
        if not isinstance(analysis, dict):
            raise ValueRefused("its analysis isn't a JSON object")
        confidence = None if row.confidence is None else row.confidence / self._certain
        if confidence is not None and not 0 <= confidence <= 1:
            text = f"its confidence {row.confidence:g} is beyond {self._certain:g}"
            raise ValueRefused(f"{text}, see ATELIER_LEGACY_CONFIDENCE_MAXIMUM")
        return OldAnalysis(
            owner=self.owner_of(str(row.owner)),
            product_id=str(row.product_id),
            revision_id=str(row.revision_id),
            view_type=str(row.view_type).lower(),
            analysis=storable_json(analysis),
            model=(row.model or "").replace("\0", " ")[:200],
            confidence=confidence,
            created_at=row.create_time or row.update_time,
        )

    def written(self, analysis: OldAnalysis, updated_at: datetime) -> dict[str, object] | None:
        """Returns the values of a row, or None if the table has no rows of this owner."""
        owner = self.old_owner(analysis.owner)
        if owner is None:
            return None
        sure = analysis.confidence
        return {
            "owner": owner,
            "product_id": analysis.product_id,
            "revision_id": analysis.revision_id,
            "view_type": analysis.view_type,
            "analysis": json.dumps(analysis.analysis),
            "model": analysis.model,
            "confidence": None if sure is None else sure * self._certain,
            "create_time": updated_at,
            "update_time": updated_at,
        }


def _problem(name: str, column: _Column, field: _Field) -> str:
    if column.type in field.types or (column.is_enum and field.types is _IDS):
        return ""
    wanted = ", ".join(sorted(field.types))
    return f"{name}: the column {column.name!r} is {column.spelled}; it can be {wanted}"


class _Shape:
    """The statements for a table with these columns."""

    def __init__(self, named: str, columns: Mapping[str, _Column]) -> None:
        *schema, name = named.split(".")
        self.columns = columns
        self._table = sa.table(
            name,
            *(sa.column(column.name, _Type(column.spelled)) for column in columns.values()),
            schema=schema[0] if schema else None,
        )
        self._of = {field: self._table.c[column.name] for field, column in columns.items()}

    def _given(self, field: str) -> sa.ColumnElement[Any]:
        """Returns a parameter as its column's type."""
        return sa.cast(sa.bindparam(field), _Type(self.columns[field].spelled))

    def _where_key(self) -> list[sa.ColumnElement[bool]]:
        return [self._of[field] == self._given(field) for field in KEY]

    def _selected(self) -> sa.Select[Any]:
        def shown(field: str) -> sa.ColumnElement[Any]:
            if field not in self._of:
                return sa.null()
            column = self._of[field]
            if field in ("create_time", "update_time"):
                return sa.cast(column, sa.TIMESTAMP(timezone=True))
            if field == "confidence":
                return sa.cast(column, sa.Double())
            return column if field == "analysis" else sa.cast(column, sa.Text())

        return sa.select(*(shown(field).label(field) for field in FIELDS))

    @cached_property
    def find(self) -> str:
        newest = [
            self._of[field].desc().nulls_last()
            for field in ("update_time", "create_time", "id")
            if field in self._of
        ]
        return _text(self._selected().where(*self._where_key()).order_by(*newest).limit(_ONE))

    @cached_property
    def first_page(self) -> str:
        return _text(self._selected().order_by(self._of["id"]).limit(sa.bindparam("limit")))

    @cached_property
    def next_page(self) -> str:
        later = self._selected().where(self._of["id"] > self._given("id"))
        return _text(later.order_by(self._of["id"]).limit(sa.bindparam("limit")))

    @cached_property
    def count(self) -> str:
        return _text(sa.select(sa.func.count()).select_from(self._table))

    @cached_property
    def update(self) -> str:
        """Sets the newest values; a row that was changed later stays."""
        values = {self._of[field]: self._given(field) for field in self._set_fields()}
        condition = self._where_key()
        if "update_time" in self._of:
            time = self._of["update_time"]
            condition.append(sa.or_(time.is_(None), time <= self._given("update_time")))
        return _text(sa.update(self._table).where(*condition).values(values))

    @cached_property
    def insert(self) -> str:
        fields = [*KEY, *self._set_fields()]
        if "create_time" in self._of:
            fields.append("create_time")
        return _text(sa.insert(self._table).values({self._of[f]: self._given(f) for f in fields}))

    @cached_property
    def exists(self) -> str:
        return _text(sa.select(_ONE).select_from(self._table).where(*self._where_key()))

    def _set_fields(self) -> list[str]:
        fields = ("analysis", "model", "confidence", "update_time")
        return [field for field in fields if field in self._of]


def _text(core: sa.Executable) -> str:
    return str(core.compile(dialect=_DIALECT))  # type: ignore[attr-defined]


class Session:
    """A connection to the other database."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], shape: _Shape) -> None:
        self._connection = connection
        self._shape = shape

    @property
    def columns(self) -> dict[str, str]:
        """Returns the type of each field's column, as `name type`."""
        found = self._shape.columns
        return {field: f"{column.name} {column.spelled}" for field, column in found.items()}

    async def find(self, key: Mapping[str, object]) -> OldRow | None:
        """Returns the newest row with this key, or None."""
        try:
            rows = await self._rows(self._shape.find, key)
        except psycopg.DataError:  # such as a word where its column has numbers
            return None
        return rows[0] if rows else None

    async def page(self, after: str | None, limit: int) -> list[OldRow]:
        """Returns the rows after this id, in the order of ids. Raises OldTableWrong if the table
        has no column for ids."""
        if "id" not in self._shape.columns:
            raise OldTableWrong(["id: a walk over the table needs a column with unique ids"])
        if after is None:
            return await self._rows(self._shape.first_page, {"limit": limit})
        return await self._rows(self._shape.next_page, {"id": after, "limit": limit})

    async def count(self) -> int:
        async with self._connection.cursor() as cursor:
            await cursor.execute(self._shape.count)
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def write(self, values: Mapping[str, object]) -> str:
        """Updates the row of this key, or adds it. Returns `written`, or `newer` if the row was
        changed later than these values. Raises ValueRefused if the table doesn't take them."""
        lock = ":".join(str(values[field]) for field in KEY)
        try:
            async with self._connection.transaction(), self._connection.cursor() as cursor:
                await cursor.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))", {"key": lock}
                )
                await cursor.execute(self._shape.update, values)
                if cursor.rowcount:
                    return "written"
                await cursor.execute(self._shape.exists, values)
                if await cursor.fetchone():
                    return "newer"
                await cursor.execute(self._shape.insert, values)
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
            raise ValueRefused(error.diag.message_primary or type(error).__name__) from None
        return "written"

    async def _rows(self, text: str, parameters: Mapping[str, object]) -> list[OldRow]:
        async with self._connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(text, parameters)
            return [OldRow(**row) for row in await cursor.fetchall()]
