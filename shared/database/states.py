"""State machines as data, and the one statement that moves a row from state to state.

A machine is a mapping from each state to the states it may go to; a state that goes nowhere is
terminal. Services keep theirs in rules.py.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa

from shared.database.db import Mutation
from shared.database.rows import Statement, Table, compiled

R = TypeVar("R")
Machine = Mapping[str, Collection[str]]


async def advance(
    m: Mutation,
    machine: Machine,
    table: Table[R],
    row_id: UUID,
    to: str,
    *,
    token: UUID | None = None,
    stamps: tuple[str, ...] = (),
    **columns: Any,
) -> R | None:
    """Moves the row to state `to`, setting `columns`, if the machine allows it from where the row
    is.

    `token` fences a job: the row must still belong to that attempt. `stamps` are columns that
    get the time of the transaction. Raises the version; returns the whole new row, or None if
    the row is gone, elsewhere or of another attempt, and then nothing was changed.
    """
    parameters = {
        **columns,
        "to_state": to,
        "row_id": row_id,
        "from_states": [state for state, targets in machine.items() if to in targets],
        "fence": token,
    }
    return await m.first(_advance(table, tuple(columns), token is not None, stamps), parameters)


@cache
def _advance(
    table: Table[R], columns: tuple[str, ...], fenced: bool, stamps: tuple[str, ...]
) -> Statement[R]:
    row = table.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {
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
