"""Collections: files that belong together. Progress, state and credits are derived; an override is
recorded."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import collection_pb2 as pb
from atelier.techfiles.v1 import collection_pb2_grpc
from psycopg.types.json import Jsonb

from services.techfiles import rules
from services.techfiles.assets import Shown
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, paging, protos
from shared.rpc.protos import Words, timestamp

TYPES = Words(pb.CollectionType, "COLLECTION_TYPE_")
STATES = Words(pb.CollectionState, "COLLECTION_STATE_")

_GET = "SELECT * FROM collections WHERE id = %(id)s"
_FIGURES = """
    SELECT i.collection_id, f.state, f.archived_at IS NOT NULL AS archived, count(*) AS files,
           sum(f.credits_used)::bigint AS credits
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = ANY(%(ids)s) GROUP BY 1, 2, 3
"""
# The file's columns and, before them, where it stands.
ITEMS = """
    SELECT i.section, i.display_order, f.* FROM collection_items i JOIN tech_files f ON f.id
        = i.tech_file_id
    WHERE i.collection_id = %(id)s ORDER BY i.section, i.display_order
"""
_ITEMS_AFTER = """
    SELECT i.section, i.display_order, f.* FROM collection_items i JOIN tech_files f ON f.id
        = i.tech_file_id
    WHERE i.collection_id = %(id)s AND (i.section, i.display_order) > (%(section)s, %(place)s)
    ORDER BY i.section, i.display_order LIMIT %(limit)s
"""
_CHANGES = (
    "SELECT * FROM collection_changes WHERE collection_id = %(id)s ORDER BY created_at DESC, id"
    " DESC LIMIT 100"
)
# Where the file is already, it stays. A place that is taken isn't given twice: the file is appended
# then.
_ADD = """
    INSERT INTO collection_items (owner, collection_id, tech_file_id, section, display_order)
    SELECT %(owner)s, %(id)s, %(file)s, %(section)s, CASE
        WHEN %(place)s::int IS NOT NULL AND NOT EXISTS (
            SELECT FROM collection_items
            WHERE collection_id = %(id)s AND section = %(section)s AND display_order = %(place)s)
        THEN %(place)s
        ELSE (SELECT coalesce(max(display_order) + 1, 0) FROM collection_items
              WHERE collection_id = %(id)s AND section = %(section)s) END
    ON CONFLICT ON CONSTRAINT collection_items_pkey DO NOTHING
    RETURNING section, display_order
"""
_COUNT = "SELECT count(*) AS files FROM collection_items WHERE collection_id = %s"
_PLACE = (
    "SELECT section, display_order FROM collection_items WHERE collection_id = %s AND tech_file_id"
    " = %s"
)


def to_proto(row: Any, figures: Sequence[Any]) -> pb.Collection:
    """`figures`: the rows of _FIGURES for this collection."""
    states = {f.state: f.files for f in figures if not f.archived}
    state, percent = rules.progress(states)
    overridden = row.progress_override is not None
    return pb.Collection(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        product_id=row.product_id,
        revision_id=row.revision_id,
        name=row.name,
        description=row.description,
        collection_type=TYPES.number[row.collection_type],
        state=STATES.number[row.state_override or state],
        progress_percent=row.progress_override if overridden else percent,
        progress_overridden=overridden,
        total_credits_used=sum(f.credits for f in figures) + row.credits_adjustment,
        credits_adjustment=row.credits_adjustment,
        file_count=sum(states.values()),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def _change(row: Any) -> pb.CollectionChange:
    change = pb.CollectionChange(
        id=str(row.id), actor=row.actor, reason=row.reason, create_time=timestamp(row.created_at)
    )
    if row.kind == "progress":
        state = STATES.number.get(row.state, 0)
        change.progress.CopyFrom(pb.ProgressOverride(progress_percent=row.value, state=state))
    elif row.kind == "credits":
        change.credits = row.value
    else:
        change.progress_derived = True
    return change


async def create(m: Mutation, columns: Mapping[str, Any]) -> Any:
    """Makes an empty collection. `columns` are product_id, revision_id, name, description,
    collection_type, facts."""
    row = await m.one(
        "INSERT INTO collections (id, owner, created_by, product_id, revision_id, name,"
        " description, collection_type, facts) VALUES (%(id)s, %(owner)s, %(actor)s,"
        " %(product_id)s, %(revision_id)s, %(name)s, %(description)s, %(collection_type)s,"
        " %(facts)s) RETURNING *",
        {
            **columns,
            "facts": Jsonb(columns["facts"]),
            "id": new_id(),
            "owner": m.owner,
            "actor": m.actor,
        },
    )
    await publish(m, row)
    return row


async def add(
    m: Mutation, collection_id: UUID, file_id: UUID, section: str, place: int | None
) -> tuple[bool, Any]:
    """Adds a file to a collection whose row is locked. Returns (whether it wasn't there before,
    where it is)."""
    values = {
        "owner": m.owner,
        "id": collection_id,
        "file": file_id,
        "section": section,
        "place": place,
    }
    added = await m.one(_ADD, values)
    return added is not None, added or await m.one(_PLACE, (collection_id, file_id))


async def publish(m: Mutation, row: Any) -> pb.Collection:
    """Tells of a change. Returns the collection as told."""
    collection = to_proto(row, await m.all(_FIGURES, {"ids": [row.id]}))
    await events.publish(m, "collection", row.id, row.version, collection)
    return collection


async def _lock(m: Mutation, collection_id: UUID) -> Any:
    """The owner's collection, locked until the commit. NOT_FOUND if it isn't theirs."""
    row = await m.one("SELECT * FROM collections WHERE id = %s FOR UPDATE", (collection_id,))
    if row is None:
        raise errors.not_found("collection", collection_id)
    return row


async def _touch(m: Mutation, collection_id: UUID, **columns: Any) -> pb.Collection:
    settings = "".join(f", {name} = %({name})s" for name in columns)
    statement: Any = (
        f"UPDATE collections SET version = version + 1, updated_at = now(){settings} WHERE id ="
        " %(id)s RETURNING *"
    )
    return await publish(m, await m.one(statement, {**columns, "id": collection_id}))


async def _record(
    m: Mutation, collection_id: UUID, kind: str, value: int | None, reason: str, state: str = ""
) -> None:
    await m.run(
        "INSERT INTO collection_changes (id, owner, collection_id, actor, kind, value, state,"
        " reason) VALUES (%(id)s, %(owner)s, %(collection_id)s, %(actor)s, %(kind)s, %(value)s,"
        " %(state)s, %(reason)s)",
        {
            "id": new_id(),
            "owner": m.owner,
            "collection_id": collection_id,
            "actor": m.actor,
            "kind": kind,
            "value": value,
            "state": state,
            "reason": reason,
        },
    )


class CollectionService(collection_pb2_grpc.CollectionServiceServicer):
    def __init__(self, db: Database, shown: Shown) -> None:
        self._db = db
        self._shown = shown

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Any
    ) -> pb.CreateCollectionResponse:
        columns = {
            "product_id": request.product_id,
            "revision_id": request.revision_id,
            "name": request.name,
            "description": request.description,
            "collection_type": TYPES.word.get(request.collection_type, "tech_pack_v2"),
            "facts": protos.facts(request.facts, "facts"),
        }

        async def work(m: Mutation) -> pb.CreateCollectionResponse:
            return pb.CreateCollectionResponse(collection=to_proto(await create(m, columns), []))

        return await self._db.mutate(request, pb.CreateCollectionResponse, work)

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: Any
    ) -> pb.GetCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        row = await self._db.row(_GET, {"id": collection_id})
        if row is None:
            raise errors.not_found("collection", collection_id)
        [collection] = await self._with_figures([row])
        response = pb.GetCollectionResponse(
            collection=collection,
            changes=[_change(change) for change in await self._db.rows(_CHANGES, {"id": row.id})],
        )
        if row.facts:
            response.facts.CopyFrom(protos.facts_message(row.facts))
        await self._add_items(request, response)
        return response

    async def _add_items(
        self, request: pb.GetCollectionRequest, response: pb.GetCollectionResponse
    ) -> None:
        """A page of the collection's files, as many as the answer still holds."""
        digest = paging.filter_digest(request, ("page_size", "page_token", "include_urls"))
        section, place = (
            paging.key_of(request.page_token, digest, str, int) if request.page_token else ("", -1)
        )
        size = request.page_size or rules.MOST_ITEMS
        page = {
            "id": UUID(request.collection_id),
            "section": section,
            "place": place,
            "limit": size + 1,
        }
        items = await self._db.rows(_ITEMS_AFTER, page)
        shown = await self._shown.files(items[:size], urls=request.include_urls)
        paging.lighten(shown, ("analysis", "prompt"), rules.LIST_BYTES)
        found = paging.fitting(
            (
                pb.CollectionItem(
                    section=item.section, display_order=item.display_order, tech_file=file
                )
                for item, file in zip(items, shown, strict=False)
            ),
            paging.ANSWER_BYTES - response.ByteSize(),
        )
        response.items.extend(found)
        if len(found) < len(items):
            last = items[len(found) - 1]
            response.next_page_token = paging.token_of(digest, last.section, last.display_order)

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: Any
    ) -> pb.ListCollectionsResponse:
        conditions, parameters = ["owner = %(owner)s"], {"owner": auth.current().owner}
        words = {
            "product_id": request.product_id,
            "revision_id": request.revision_id,
            "collection_type": TYPES.word.get(request.collection_type),
        }
        for name, value in words.items():
            if value:
                conditions.append(f"{name} = %({name})s")
                parameters[name] = value
        page = paging.page(request)
        statement: Any = f"SELECT * FROM collections WHERE {' AND '.join(conditions)}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        collections, token = page.fill(rows, await self._with_figures(page.cut(rows)))
        return pb.ListCollectionsResponse(collections=collections, next_page_token=token)

    async def AddFiles(self, request: pb.AddFilesRequest, context: Any) -> pb.AddFilesResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        first = request.display_order if request.HasField("display_order") else None

        async def work(m: Mutation) -> pb.AddFilesResponse:
            await _lock(m, collection_id)
            results = []
            for index, text in enumerate(request.tech_file_ids):
                place = None if first is None else first + index
                results.append(await _add_one(m, collection_id, text, request.section, place))
            count = (await m.one(_COUNT, (collection_id,))).files
            if count > rules.MOST_ITEMS:
                text = (
                    f"it would have {count} files, and may have {rules.MOST_ITEMS}; start another"
                    " collection"
                )
                raise errors.precondition(text, subject=f"collections/{collection_id}")
            return pb.AddFilesResponse(results=results, collection=await _touch(m, collection_id))

        return await self._db.mutate(request, pb.AddFilesResponse, work)

    async def RemoveFiles(
        self, request: pb.RemoveFilesRequest, context: Any
    ) -> pb.RemoveFilesResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> pb.RemoveFilesResponse:
            await _lock(m, collection_id)
            gone = await m.all(
                "DELETE FROM collection_items WHERE collection_id = %s AND tech_file_id ="
                " ANY(%s::uuid[]) RETURNING tech_file_id",
                (collection_id, list(request.tech_file_ids)),
            )
            removed = {row.tech_file_id for row in gone}
            ordered = [
                text for text in dict.fromkeys(request.tech_file_ids) if UUID(text) in removed
            ]
            return pb.RemoveFilesResponse(
                removed_tech_file_ids=ordered, collection=await _touch(m, collection_id)
            )

        return await self._db.mutate(request, pb.RemoveFilesResponse, work)

    async def SetCollectionProgress(
        self, request: pb.SetCollectionProgressRequest, context: Any
    ) -> pb.SetCollectionProgressResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        overridden = request.HasField("progress")
        percent = request.progress.progress_percent if overridden else None
        state = STATES.word.get(request.progress.state, "")

        async def work(m: Mutation) -> pb.SetCollectionProgressResponse:
            await _lock(m, collection_id)
            kind = "progress" if overridden else "progress_derived"
            await _record(m, collection_id, kind, percent, request.reason, state)
            collection = await _touch(
                m, collection_id, progress_override=percent, state_override=state
            )
            return pb.SetCollectionProgressResponse(collection=collection)

        return await self._db.mutate(request, pb.SetCollectionProgressResponse, work)

    async def AdjustCollectionCredits(
        self, request: pb.AdjustCollectionCreditsRequest, context: Any
    ) -> pb.AdjustCollectionCreditsResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> pb.AdjustCollectionCreditsResponse:
            row = await _lock(m, collection_id)
            await _record(m, collection_id, "credits", request.credits, request.reason)
            adjustment = row.credits_adjustment + request.credits
            collection = await _touch(m, collection_id, credits_adjustment=adjustment)
            if collection.total_credits_used < 0:
                text = f"the sum would be {collection.total_credits_used}; take away less"
                raise errors.precondition(text, subject=f"collections/{collection_id}")
            return pb.AdjustCollectionCreditsResponse(collection=collection)

        return await self._db.mutate(request, pb.AdjustCollectionCreditsResponse, work)

    async def _with_figures(self, rows: Sequence[Any]) -> list[pb.Collection]:
        figures = defaultdict(list)
        for each in await self._db.rows(_FIGURES, {"ids": [row.id for row in rows]}):
            figures[each.collection_id].append(each)
        return [to_proto(row, figures[row.id]) for row in rows]


async def _add_one(
    m: Mutation, collection_id: UUID, text: str, section: str, place: int | None
) -> pb.AddFileResult:
    file_id = UUID(text)
    if not await m.one("SELECT id FROM tech_files WHERE id = %s", (file_id,)):
        return pb.AddFileResult(tech_file_id=text, outcome=pb.ADD_FILE_OUTCOME_NOT_FOUND)
    added, where = await add(m, collection_id, file_id, section, place)
    outcome = pb.ADD_FILE_OUTCOME_ADDED if added else pb.ADD_FILE_OUTCOME_ALREADY_THERE
    return pb.AddFileResult(
        tech_file_id=text, outcome=outcome, section=where.section, display_order=where.display_order
    )
