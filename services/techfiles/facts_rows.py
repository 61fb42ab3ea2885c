"""Versions of a collection's facts: the present ones stand in the collection, earlier ones in rows
that are only added."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import collection_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import collection_rows, origins
from services.techfiles.collection_rows import COLLECTIONS, LockedCollection
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.rpc import errors, protos
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class FactsVersion:
    """Facts under one number: the present ones (`current`), or earlier ones."""

    id: UUID
    number: int
    facts: dict[str, Any]
    sources: dict[str, Any]
    created_by: str
    reason: str
    created_at: datetime
    current: bool


@dataclass(slots=True)
class FactsOf:
    """Facts and their sources, by the fact's path."""

    facts: dict[str, Any]
    sources: dict[str, Any]


_VERSIONS = """
    SELECT id, number, facts, sources, created_by, reason, created_at, current FROM (
        SELECT id, number, facts, sources, created_by, reason, created_at, false AS current
        FROM collection_facts WHERE collection_id = %(id)s
        UNION ALL
        SELECT id, facts_number, facts, fact_sources,
            coalesce(nullif(facts_by, ''), created_by), facts_reason,
            coalesce(facts_at, created_at), true
        FROM collections WHERE id = %(id)s
    ) AS versions
"""
_PAGE = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"
SELECT_VERSIONS = Statement(FactsVersion, f"{_VERSIONS} {_PAGE}")
SELECT_VERSIONS_AFTER = Statement(
    FactsVersion, f"{_VERSIONS} WHERE (created_at, id) < (%(after_at)s, %(after_id)s) {_PAGE}"
)
_SELECT_FACTS = Statement(
    FactsOf,
    """
    SELECT facts, sources FROM collection_facts WHERE collection_id = %(id)s AND number = %(number)s
    """,
)
_KEEP = Command("""
    INSERT INTO collection_facts (id, owner, collection_id, number, facts, sources, created_by,
        reason, created_at)
    SELECT %(version_id)s, owner, id, facts_number, facts, fact_sources,
        coalesce(nullif(facts_by, ''), created_by), facts_reason, coalesce(facts_at, created_at)
    FROM collections WHERE id = %(id)s
""")
# No two versions have the same time: lists are ordered by it.
_STATE = Statement(
    LockedCollection,
    f"""
    UPDATE collections SET facts = %(facts)s, fact_sources = %(sources)s,
        facts_number = facts_number + 1, facts_by = %(actor)s, facts_reason = %(reason)s,
        facts_at = greatest(clock_timestamp(), coalesce(facts_at, created_at) + interval '1 us'),
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {COLLECTIONS.columns}
    """,
)


def to_proto(row: FactsVersion) -> pb.CollectionFactsVersion:
    version = pb.CollectionFactsVersion(
        number=row.number,
        current=row.current,
        created_by=row.created_by,
        reason=row.reason,
        create_time=timestamp(row.created_at),
    )
    if row.facts:
        version.facts.CopyFrom(protos.facts_message(row.facts))
    if row.sources:
        version.fact_sources.CopyFrom(protos.struct(row.sources))
    return version


async def state(
    m: Mutation,
    collection: LockedCollection,
    facts: dict[str, Any],
    reason: str,
    sources: Mapping[str, Any] | None = None,
) -> pb.Collection:
    """States facts and keeps the present ones as a version; equal ones change nothing. Without
    `sources` the caller supplies what is new. Returns the collection's message."""
    if facts == collection.facts:
        return await collection_rows.read(m, collection)
    if sources is None:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        said = {"source": "supplied", "by": m.actor, "at": now}
        sources = origins.restated(
            collection.facts, collection.fact_sources, facts, said, collection.facts_number
        )
    await m.run(_KEEP, {"id": collection.id, "version_id": new_id()})
    values = {
        "id": collection.id,
        "facts": Jsonb(facts),
        "sources": Jsonb(sources),
        "actor": m.actor,
        "reason": reason,
    }
    return await collection_rows.publish(m, await m.one(_STATE, values))


async def stated(m: Mutation, collection: LockedCollection, number: int) -> FactsOf:
    """Returns the facts under a number. Raises NOT_FOUND if there are none."""
    if number == collection.facts_number:
        return FactsOf(collection.facts, collection.fact_sources)
    facts = await m.first(_SELECT_FACTS, {"id": collection.id, "number": number})
    if facts is None:
        raise errors.not_found("version of the facts", number)
    return facts
