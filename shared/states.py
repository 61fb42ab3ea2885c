"""State machines as data, and the one statement that moves a row from state to state.

A machine is a mapping from each state to the states it may go to; a state that goes nowhere is
terminal. Services keep theirs in rules.py.
"""

from collections.abc import Collection, Mapping
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from shared.db import Mutation

Machine = Mapping[str, Collection[str]]


async def advance(
    m: Mutation,
    machine: Machine,
    table: LiteralString,
    row_id: UUID,
    to: str,
    *,
    token: UUID | None = None,
    **columns: Any,
) -> Any:
    """Moves the row to state `to`, setting `columns`, if the machine allows it from where the row
    is.

    `token` fences a job: the row must still belong to that attempt. Raises the row's version, and
    returns the whole new row; None if the row is gone, elsewhere or of another attempt, and then
    nothing was changed.
    """
    sources = [state for state, targets in machine.items() if to in targets]
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
    )
    statement = sql.SQL(
        "UPDATE {table} SET state = %(to_state)s, version = version + 1, updated_at ="
        " now(){comma}{assignments} WHERE id = %(row_id)s AND state = ANY(%(from_states)s){fence}"
        " RETURNING *"
    ).format(
        table=sql.Identifier(table),
        comma=sql.SQL(", " if columns else ""),
        assignments=assignments,
        fence=sql.SQL(" AND attempt_token = %(fence)s" if token else ""),
    )
    parameters = {
        **columns,
        "to_state": to,
        "row_id": row_id,
        "from_states": sources,
        "fence": token,
    }
    return await (await m.conn.execute(statement, parameters)).fetchone()
