"""Keys of price books as names are compared today. Until now only case and spaces didn't count.

Of two offers that have become one the newer stays, as if it had been imported after the other.
"""

from typing import Any

from alembic import op
from psycopg.rows import namedtuple_row

from services.pipeline.price_csv import KEYS, MAX_KEY_BYTES, folded

revision = "0003_price_book_keys"
down_revision = "0002_job_waits"

_SAME = " AND ".join(f"{name}_key = %({name}_key)s" for name in KEYS)
_TWIN = f"owner = %(owner)s AND {_SAME} AND id <> %(id)s"
# A text of ASCII alone has the key that it had.
_OTHERS = """
    SELECT * FROM price_book_entries WHERE octet_length(brand || model || name || marketplace)
        <> char_length(brand || model || name || marketplace) ORDER BY updated_at DESC, id DESC
"""


def upgrade() -> None:
    connection = op.get_bind().connection.driver_connection
    # Its policies are for those who serve; the owner of the table, who migrates, would see no row.
    connection.execute("ALTER TABLE price_book_entries NO FORCE ROW LEVEL SECURITY")
    with connection.cursor(name="entries", row_factory=namedtuple_row) as entries:
        for row in entries.execute(_OTHERS):
            _fold(connection, row)
    connection.execute("ALTER TABLE price_book_entries FORCE ROW LEVEL SECURITY")


def _fold(connection: Any, row: Any) -> None:
    keys = {f"{name}_key": folded(getattr(row, name)) for name in KEYS}
    known = all(len(key.encode()) <= MAX_KEY_BYTES for key in keys.values()) and (
        keys["model_key"] or keys["name_key"]
    )
    if not known or all(getattr(row, name) == key for name, key in keys.items()):
        return
    values = {**keys, "id": row.id, "owner": row.owner, "at": row.updated_at}
    connection.execute(
        f"DELETE FROM price_book_entries WHERE {_TWIN} AND updated_at <= %(at)s", values
    )
    if connection.execute(
        "DELETE FROM price_book_entries WHERE id = %(id)s AND EXISTS (SELECT FROM"
        f" price_book_entries WHERE {_TWIN})",
        values,
    ).rowcount:
        return
    assignments = ", ".join(f"{name} = %({name})s" for name in keys)
    connection.execute(f"UPDATE price_book_entries SET {assignments} WHERE id = %(id)s", values)
