"""State machines as data, and the one statement that changes a row's state.

A machine maps each state to the states that may follow it; a state that nothing follows is final.
Each service defines its machines in rules.py.
"""

from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol, TypeVar
from uuid import UUID

import sqlalchemy as sa

from shared.database.db import Mutation
from shared.database.rows import Statement, Table, compiled

R = TypeVar("R")
Machine = Mapping[str, Collection[str]]
Computed = Mapping[str, sa.ColumnElement[Any]]
"""Columns that SQL computes. An expression may use the value that is bound for its own column. It
is part of a statement's shape, so it must be made once per process."""
NOTHING: Computed = MappingProxyType({})


class Row(Protocol):
    """A row with a state."""

    @property
    def id(self) -> UUID: ...
    @property
    def state(self) -> str: ...


async def advance(
    m: Mutation,
    machine: Machine,
    table: Table[R],
    row_id: UUID,
    to: str,
    *,
    token: UUID | None = None,
    stamps: tuple[str, ...] = (),
    computed: Computed = NOTHING,
    **columns: Any,
) -> R | None:
    """Moves the row to state `to` and sets `columns`, if the machine allows it from its state.

    `token` is a fencing token: the row must still belong to that attempt. `stamps` are columns
    that get the time of the transaction, `computed` those that SQL computes. Increments the version
    and returns the whole new row. Returns None and changes nothing if the row is gone, is in a
    state that `to` can't follow, or belongs to another attempt.
    """
    parameters = {
        **columns,
        "to_state": to,
        "row_id": row_id,
        "from_states": [state for state, targets in machine.items() if to in targets],
        "fence": token,
    }
    shape = (tuple(columns), token is not None, stamps, tuple(computed.items()))
    return await m.first(_advance(table, *shape), parameters)


async def move(
    m: Mutation,
    machine: Machine,
    table: Table[R],
    row: Row,
    to: str,
    *,
    stamps: tuple[str, ...] = (),
    **columns: Any,
) -> R:
    """Moves a row that this transaction has locked, as `advance` does, and returns the new row.
    Raises RuntimeError if the machine does not allow it, which is a bug of ours."""
    moved = await advance(m, machine, table, row.id, to, stamps=stamps, **columns)
    if moved is None:
        raise RuntimeError(f"the machine has no way from {row.state} to {to}")
    return moved


@cache
def _advance(
    table: Table[R],
    columns: tuple[str, ...],
    fenced: bool,
    stamps: tuple[str, ...],
    computed: tuple[tuple[str, sa.ColumnElement[Any]], ...],
) -> Statement[R]:
    row = table.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {
        **dict(computed),
        "state": sa.bindparam("to_state"),
        "version": row.version + sa.literal_column("1"),
        **{name: sa.func.now() for name in ("updated_at", *stamps)},
    }
    where = [
        row.id == sa.bindparam("row_id"),
        row.state == sa.any_(sa.bindparam("from_states")),
    ]
    if fenced:
        where.append(row.attempt_token == sa.bindparam("fence"))
    return compiled(table.row, sa.update(table.core).values(values).where(*where).returning(*row))
