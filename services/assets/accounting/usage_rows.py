"""Usage: figures of storage of an owner or of the deployment.

Triggers count (tables.sql). A figure is the folded rows plus the deltas that aren't folded yet;
one statement reads both, and so at one moment. `folding` folds the deltas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Generic, TypeVar

from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import auth, errors

R = TypeVar("R")

DEPLOYMENT = "deployment"
WINDOW_DAYS = 30
WAYS_OF_SENDING = ("exact", "issued")
# Nouns that take room; the other nouns count what happened.
STOCKED = "noun IN ('asset', 'variant', 'document')"


class PerOwner(Generic[R]):
    """A statement about one owner, and the same about the deployment. A folded row of owner
    'deployment' has the sums of all owners, but deltas name their own owner: `{whose}` in the text
    selects the owner's deltas, or all of them."""

    def __init__(self, row: type[R], text: str) -> None:
        self._of_owner = Statement(row, text.format(whose="owner = %(owner)s"))
        self._of_all = Statement(row, text.format(whose="true"))

    def of(self, owner: str) -> Statement[R]:
        return self._of_all if owner == DEPLOYMENT else self._of_owner


@dataclass(slots=True)
class Stock:
    """How many rows and bytes there are of one noun, kind, media type and state."""

    noun: str
    kind: str
    mime_type: str
    state: str
    number: int
    bytes: int


@dataclass(slots=True)
class Flow:
    """What happened on one day. Noun 'stored' says by how much the stored bytes grew."""

    day: date
    noun: str
    state: str
    number: int
    bytes: int
    today: date


@dataclass(slots=True)
class Used:
    """The figures that quotas limit: the assets that count, bytes of all originals, all bytes
    stored, bytes sent in this calendar month."""

    assets: int
    originals: int
    stored: int
    sent: int


_SELECT_STOCK = PerOwner(
    Stock,
    f"""
    SELECT noun, kind, mime_type, state, sum(number)::bigint AS number,
        sum(bytes)::bigint AS bytes FROM (
        SELECT noun, kind, mime_type, state, number, bytes FROM storage_totals WHERE owner
            = %(owner)s
        UNION ALL
        SELECT noun, kind, mime_type, state, number, bytes FROM storage_deltas
        WHERE {STOCKED} AND {{whose}}
    ) AS counted GROUP BY noun, kind, mime_type, state HAVING sum(number) <> 0 OR sum(bytes) <> 0
    ORDER BY noun, kind, mime_type, state
    """,
)
_SELECT_FLOW = PerOwner(
    Flow,
    f"""
    SELECT day, noun, state, sum(number)::bigint AS number, sum(bytes)::bigint AS bytes, today
        FROM (
        SELECT day, noun, state, number, bytes FROM storage_days
        WHERE owner = %(owner)s AND day > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer
        UNION ALL
        SELECT day, CASE WHEN {STOCKED} THEN 'stored' ELSE noun END,
               CASE WHEN {STOCKED} THEN '' ELSE state END, number, bytes FROM storage_deltas
        WHERE day > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer AND {{whose}}
    ) AS counted, (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock GROUP BY day, noun,
        state, today
    """,
)
_SELECT_FIRST_DAY = Statement(
    date, "SELECT day FROM storage_days WHERE owner = %(owner)s ORDER BY day LIMIT 1"
)
_SELECT_USED = PerOwner(
    Used,
    f"""
    SELECT coalesce(sum(number) FILTER (WHERE noun = 'asset' AND state <> 'rejected'),
        0)::bigint AS assets,
           coalesce(sum(bytes) FILTER (WHERE noun = 'asset'), 0)::bigint AS originals,
           coalesce(sum(bytes), 0)::bigint AS stored,
           (SELECT coalesce(sum(bytes), 0)::bigint FROM (
                SELECT bytes FROM storage_days WHERE owner = %(owner)s AND noun = 'download'
                    AND day >= month
                UNION ALL
                SELECT bytes FROM storage_deltas WHERE noun = 'download' AND day >= month
                    AND {{whose}}) AS all_sent
           ) AS sent
    FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month) AS clock LEFT
        JOIN LATERAL (
        SELECT noun, state, number, bytes FROM storage_totals WHERE owner = %(owner)s
        UNION ALL
        SELECT noun, state, number, bytes FROM storage_deltas WHERE {STOCKED} AND {{whose}}
    ) AS counted ON true GROUP BY month
    """,
)


@dataclass
class Usage:
    """The usage of an owner or the deployment: what is there, and what happened by day."""

    stock: Sequence[Stock]
    flow: Sequence[Flow]
    first_day: date | None = None

    def number(self, noun: str, *states: str) -> int:
        return sum(
            row.number
            for row in self.stock
            if row.noun == noun and (not states or row.state in states)
        )

    @property
    def assets(self) -> int:
        return self.number("asset") - self.number("asset", "rejected")

    @property
    def stored_bytes(self) -> int:
        return sum(row.bytes for row in self.stock)

    def happened(self, noun: str, state: str, days: int) -> tuple[int, int]:
        """Returns number and bytes in the last `days` days, including today."""
        rows = [row for row in self._since(days) if row.noun == noun and row.state == state]
        return sum(row.number for row in rows), sum(row.bytes for row in rows)

    def sent(self, days: int) -> dict[str, int]:
        """Returns the bytes sent in the last `days` days: `exact` (by calls), `issued` (URLs)."""
        return {how: self.happened("download", how, days)[1] for how in WAYS_OF_SENDING}

    def sent_this_month(self) -> dict[str, int]:
        """Returns the bytes sent in this calendar month: `exact` (by calls), `issued` (URLs)."""
        sent = [row for row in self.flow if row.noun == "download" and _same_month(row)]
        return {how: sum(row.bytes for row in sent if row.state == how) for how in WAYS_OF_SENDING}

    def grown(self, days: int) -> int:
        """Returns by how many bytes the stored bytes grew in the last `days` days."""
        return sum(row.bytes for row in self._since(days) if row.noun == "stored")

    def _since(self, days: int) -> list[Flow]:
        return [row for row in self.flow if row.day > row.today - timedelta(days=days)]


def _same_month(row: Flow) -> bool:
    return (row.day.year, row.day.month) == (row.today.year, row.today.month)


async def operate(m: Mutation) -> None:
    """Lets this transaction see usage and quotas of every owner."""
    m.send(b"SELECT set_config('app.operator', 'on', true)")


async def end_operating(m: Mutation) -> None:
    m.send(b"SELECT set_config('app.operator', '', true)")


def named(owner: str) -> str:
    """Returns the owner whose figures a request is about. Raises NOT_FOUND if the request names
    another owner and the caller isn't an operator."""
    identity = auth.current()
    if identity.role == "admin":
        return owner or DEPLOYMENT
    if owner not in ("", identity.owner):
        raise errors.not_found("owner", owner)
    return identity.owner


async def read(db: Database, owner: str) -> Usage:
    """Returns all figures of an owner or the deployment, each as it is at one moment."""
    async with db.transaction("") as m:
        await operate(m)
        stock = await m.all(_SELECT_STOCK.of(owner), {"owner": owner})
        flow = await m.all(_SELECT_FLOW.of(owner), {"owner": owner, "days": WINDOW_DAYS + 1})
        first_day = await m.first(_SELECT_FIRST_DAY, {"owner": owner})
    return Usage(stock, flow, first_day)


async def used(m: Mutation, owner: str) -> Used:
    """Returns what an owner or the deployment uses of its quotas. The transaction must have called
    `operate`."""
    return await m.one(_SELECT_USED.of(owner), {"owner": owner})
