"""Gathers what a document shows: what a collection holds now, or what a release froze."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from services.techfiles import (
    contents,
    diffing,
    document,
    origins,
    release_rows,
    revising,
    tech_file_rows,
)
from services.techfiles.collection_rows import (
    SELECT_COLLECTION,
    SELECT_FILES,
    CollectedFile,
    Collection,
)
from services.techfiles.contents import Assets, Contents
from services.techfiles.diffing import Changes
from services.techfiles.export_rows import Export, NewExport
from services.techfiles.release_rows import Release
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.formats.facts import parse_facts

_MOST_FILES = 1000

_SELECT_PACK_NUMBER = Statement(
    int,
    """
    SELECT number FROM tech_files WHERE collection_id = %(id)s AND archived_at IS NULL
        AND deleted_at IS NULL
    ORDER BY number DESC LIMIT 1
    """,
)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a document shows, and the files that its ZIP holds."""

    collection: Collection
    files: Sequence[CollectedFile]
    facts: dict[str, Any]
    sources: Mapping[str, Any]
    as_of: datetime
    version: str | None
    release: document.Release | None = None
    changes: Changes | None = None  # of the facts, since the release before

    def contents(self, known: Assets) -> Contents:
        """Returns the contents of the pack. It may take a second: analyses may be large."""
        made = contents.pack_of(
            self.collection,
            self.files,
            parse_facts(self.facts),
            known,
            self.as_of,
            self.version,
            self.sources,
        )
        pack = replace(made.pack, release=self.release)
        if self.changes:
            pack = revising.marked(pack, self.changes)
        return replace(made, pack=pack)


async def gather(db: Database, export: Export | NewExport) -> Gathered:
    if export.release_id is not None:
        return await _of_release(db, export, export.release_id)
    collection_id = {"id": export.collection_id}
    async with db.transaction(export.owner) as m:
        collection = await m.one(SELECT_COLLECTION, collection_id)
        rows = await m.all(SELECT_FILES, collection_id)
        number = await m.first(_SELECT_PACK_NUMBER, collection_id)
    kept = [row for row in rows if tech_file_rows.counts(row) and row.state == "completed"]
    facts = export.facts if export.facts is not None else collection.facts
    return Gathered(
        collection,
        kept,
        facts,
        origins.of_same(collection.facts, collection.fact_sources, facts),
        contents.as_of(collection, kept),
        f"v{number}" if number else None,
    )


async def _of_release(db: Database, export: Export | NewExport, release_id: UUID) -> Gathered:
    async with db.transaction(export.owner) as m:
        release = await m.one(release_rows.SELECT_RELEASE, {"id": release_id})
        collection = await _frozen_collection(m, release_id)
        files = await m.all(
            release_rows.SELECT_FILES, {"id": release_id, "after": 0, "limit": _MOST_FILES}
        )
        previous = None
        if release.previous_id:
            previous = await m.one(release_rows.SELECT_RELEASE, {"id": release.previous_id})
    draft = isinstance(export, Export) and export.draft
    changes: Changes | None = None
    revisions: tuple[document.Revision, ...] = ()
    if previous:
        changes, revisions = await _revisions(db, export.owner, previous, release, collection)
    kept = await asyncio.to_thread(lambda: [release_rows.collected(file) for file in files])
    printed = revising.printed(release, previous, draft=draft, revisions=revisions)
    return Gathered(
        collection,
        kept,
        collection.facts,
        collection.fact_sources,
        release.created_at if draft else release.decided_at or release.created_at,
        printed.title,
        printed,
        changes,
    )


async def _frozen_collection(m: Mutation, release_id: UUID) -> Collection:
    return release_rows.collection_of(
        await m.one(release_rows.SELECT_COLLECTION, {"id": release_id})
    )


async def _revisions(
    db: Database, owner: str, previous: Release, release: Release, collection: Collection
) -> tuple[Changes, tuple[document.Revision, ...]]:
    """Returns what differs in the facts, and the lines about all that differs."""
    async with db.transaction(owner) as m:
        before = await _frozen_collection(m, previous.id)
    changes = await asyncio.to_thread(
        diffing.compare, {"facts": before.facts}, {"facts": collection.facts}
    )
    slots = await release_rows.slots_between(db, previous.id, release.id)
    return changes, revising.lines(changes, slots)
