"""CollectionService: one method per call."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import collection_pb2 as pb

from services.techfiles import collection_rows, facts_rows, rules, trash_rows
from services.techfiles.collection_rows import (
    COLLECTION_CHANGES,
    COLLECTIONS,
    FILE_COLUMNS,
    SELECT_COLLECTION,
    SELECT_NAME,
    STATES,
    SUM_FILES,
    TYPES,
    CollectedFile,
    Collection,
    CollectionChange,
    Figures,
    LockedCollection,
)
from services.techfiles.explaining_collections import Explaining
from services.techfiles.facts_rows import SELECT_VERSIONS, SELECT_VERSIONS_AFTER
from services.techfiles.trash import CollectionTrash
from services.techfiles.views import TechFileViews
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging, protos
from shared.rpc.server import Context

_LIST = Listing(COLLECTIONS, Collection, **trash_rows.HIDES)
_SELECT_FILES_AFTER = Statement(
    CollectedFile,
    f"""
    SELECT {FILE_COLUMNS}
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = %(id)s AND (i.section, i.display_order) > (%(section)s, %(place)s)
    ORDER BY i.section, i.display_order LIMIT %(limit)s
    """,
)
_SELECT_CHANGES = Statement(
    CollectionChange,
    f"""
    SELECT {COLLECTION_CHANGES.columns} FROM collection_changes
    WHERE collection_id = %(id)s ORDER BY created_at DESC, id DESC LIMIT 100
    """,
)
_KEEP_TECH_FILE = Statement(
    UUID, "SELECT id FROM tech_files WHERE id = %(id)s AND deleted_at IS NULL FOR KEY SHARE"
)
_COUNT_FILES = Statement(int, "SELECT count(*) FROM collection_items WHERE collection_id = %(id)s")
_DELETE_ITEMS = Statement(
    UUID,
    """
    DELETE FROM collection_items
    WHERE collection_id = %(id)s AND tech_file_id = ANY(%(file_ids)s::uuid[])
    RETURNING tech_file_id
    """,
)


class CollectionService(CollectionTrash):
    def __init__(
        self, db: Database, views: TechFileViews, explaining: Explaining, life: timedelta
    ) -> None:
        super().__init__(db, life)
        self._views = views
        self._explaining = explaining

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        facts = protos.facts(request.facts, "facts")

        async def work(m: Mutation) -> pb.CreateCollectionResponse:
            row = await collection_rows.create(
                m,
                product_id=request.product_id,
                revision_id=request.revision_id,
                name=request.name,
                description=request.description,
                collection_type=TYPES.word.get(request.collection_type, "tech_pack_v2"),
                facts=facts,
            )
            return pb.CreateCollectionResponse(collection=collection_rows.to_proto(row, []))

        return await self._db.mutate(request, pb.CreateCollectionResponse, work)

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: Context
    ) -> pb.GetCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        row = await self._db.first(SELECT_COLLECTION, {"id": collection_id})
        if row is None:
            raise errors.not_found("collection", collection_id)
        [collection] = await self._with_figures([row])
        changes = await self._db.all(_SELECT_CHANGES, {"id": row.id})
        response = pb.GetCollectionResponse(
            collection=collection,
            changes=[collection_rows.change_to_proto(change) for change in changes],
        )
        if row.facts:
            response.facts.CopyFrom(protos.facts_message(row.facts))
        if row.fact_sources:
            response.fact_sources.CopyFrom(protos.struct(row.fact_sources))
        await self._add_files(request, response)
        return response

    async def _add_files(
        self, request: pb.GetCollectionRequest, response: pb.GetCollectionResponse
    ) -> None:
        """Adds a page of the collection's files to the answer, as many as still fit."""
        digest = paging.filter_digest(request, ("page_size", "page_token", "include_urls"))
        section: str
        place: int
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
        rows = await self._db.all(_SELECT_FILES_AFTER, page)
        files = await self._views.files(rows[:size], urls=request.include_urls)
        paging.trim_to_limit(files, ("analysis", "prompt"), rules.LIST_BYTES)
        items = paging.fitting(
            (
                pb.CollectionItem(
                    section=row.section, display_order=row.display_order, tech_file=file
                )
                for row, file in zip(rows, files, strict=False)
            ),
            paging.ANSWER_BYTES - response.ByteSize(),
        )
        response.items.extend(items)
        if len(items) < len(rows):
            last = rows[len(items) - 1]
            response.next_page_token = paging.token_of(digest, last.section, last.display_order)

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: Context
    ) -> pb.ListCollectionsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "product_id": request.product_id,
            "revision_id": request.revision_id,
            "collection_type": TYPES.word.get(request.collection_type),
            "hide_archived": not request.show_archived,
            "hide_deleted": not request.show_deleted,
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        collections, token = page.fill(rows, await self._with_figures(page.cut(rows)))
        return pb.ListCollectionsResponse(collections=collections, next_page_token=token)

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, context: Context
    ) -> pb.UpdateCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        columns = _changed_columns(request)

        async def work(m: Mutation) -> pb.UpdateCollectionResponse:
            row = await collection_rows.lock(m, collection_id, request.etag)
            return pb.UpdateCollectionResponse(
                collection=await collection_rows.update(m, row, **columns)
            )

        return await self._db.mutate(request, pb.UpdateCollectionResponse, work)

    async def UpdateCollectionFacts(
        self, request: pb.UpdateCollectionFactsRequest, context: Context
    ) -> pb.UpdateCollectionFactsResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        facts = protos.facts(request.facts, "facts")

        async def work(m: Mutation) -> pb.UpdateCollectionFactsResponse:
            row = await collection_rows.lock(m, collection_id, request.etag)
            return pb.UpdateCollectionFactsResponse(
                collection=await facts_rows.state(m, row, facts, request.reason)
            )

        return await self._db.mutate(request, pb.UpdateCollectionFactsResponse, work)

    async def RestoreCollectionFacts(
        self, request: pb.RestoreCollectionFactsRequest, context: Context
    ) -> pb.RestoreCollectionFactsResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> pb.RestoreCollectionFactsResponse:
            row = await collection_rows.lock(m, collection_id, request.etag)
            earlier = await facts_rows.stated(m, row, request.number)
            reason = request.reason or f"version {request.number} restored"
            return pb.RestoreCollectionFactsResponse(
                collection=await facts_rows.state(m, row, earlier.facts, reason, earlier.sources)
            )

        return await self._db.mutate(request, pb.RestoreCollectionFactsResponse, work)

    async def ListCollectionFactsVersions(
        self, request: pb.ListCollectionFactsVersionsRequest, context: Context
    ) -> pb.ListCollectionFactsVersionsResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        if await self._db.first(SELECT_NAME, {"id": collection_id}) is None:
            raise errors.not_found("collection", collection_id)
        page = paging.page(request)
        statement = SELECT_VERSIONS_AFTER if page.after else SELECT_VERSIONS
        rows = await self._db.all(statement, {"id": collection_id, **page.parameters})
        versions, token = page.fill(rows, map(facts_rows.to_proto, rows))
        return pb.ListCollectionFactsVersionsResponse(versions=versions, next_page_token=token)

    async def ExplainCollection(
        self, request: pb.ExplainCollectionRequest, context: Context
    ) -> pb.ExplainCollectionResponse:
        return await self._explaining.explain(parse_id(request.collection_id, "collection_id"))

    async def AddFiles(self, request: pb.AddFilesRequest, context: Context) -> pb.AddFilesResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        first = request.display_order if request.HasField("display_order") else None

        async def work(m: Mutation) -> pb.AddFilesResponse:
            collection = await collection_rows.lock(m, collection_id, request.etag)
            results = []
            for index, text in enumerate(request.tech_file_ids):
                place = None if first is None else first + index
                results.append(await _add_file(m, collection, text, request.section, place))
            count = await m.one(_COUNT_FILES, {"id": collection_id})
            if count > rules.MOST_ITEMS:
                text = (
                    f"it would have {count} files, and may have {rules.MOST_ITEMS}; start another"
                    " collection"
                )
                raise errors.precondition(text, subject=f"collections/{collection_id}")
            return pb.AddFilesResponse(
                results=results, collection=await collection_rows.update(m, collection)
            )

        return await self._db.mutate(request, pb.AddFilesResponse, work)

    async def RemoveFiles(
        self, request: pb.RemoveFilesRequest, context: Context
    ) -> pb.RemoveFilesResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> pb.RemoveFilesResponse:
            collection = await collection_rows.lock(m, collection_id, request.etag)
            items = {"id": collection_id, "file_ids": list(request.tech_file_ids)}
            removed = set(await m.all(_DELETE_ITEMS, items))
            ordered = [
                text for text in dict.fromkeys(request.tech_file_ids) if UUID(text) in removed
            ]
            return pb.RemoveFilesResponse(
                removed_tech_file_ids=ordered,
                collection=await collection_rows.update(m, collection),
            )

        return await self._db.mutate(request, pb.RemoveFilesResponse, work)

    async def SetCollectionProgress(
        self, request: pb.SetCollectionProgressRequest, context: Context
    ) -> pb.SetCollectionProgressResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        overridden = request.HasField("progress")
        percent = request.progress.progress_percent if overridden else None
        state = STATES.word.get(request.progress.state, "")

        async def work(m: Mutation) -> pb.SetCollectionProgressResponse:
            row = await collection_rows.lock(m, collection_id, request.etag)
            kind = "progress" if overridden else "progress_derived"
            await collection_rows.record_change(m, row, kind, percent, request.reason, state)
            collection = await collection_rows.update(
                m, row, progress_override=percent, state_override=state
            )
            return pb.SetCollectionProgressResponse(collection=collection)

        return await self._db.mutate(request, pb.SetCollectionProgressResponse, work)

    async def AdjustCollectionCredits(
        self, request: pb.AdjustCollectionCreditsRequest, context: Context
    ) -> pb.AdjustCollectionCreditsResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> pb.AdjustCollectionCreditsResponse:
            row = await collection_rows.lock(m, collection_id, request.etag)
            await collection_rows.record_change(m, row, "credits", request.credits, request.reason)
            adjustment = row.credits_adjustment + request.credits
            collection = await collection_rows.update(m, row, credits_adjustment=adjustment)
            if collection.total_credits_used < 0:
                text = f"the sum would be {collection.total_credits_used}; take away less"
                raise errors.precondition(text, subject=f"collections/{collection_id}")
            return pb.AdjustCollectionCreditsResponse(collection=collection)

        return await self._db.mutate(request, pb.AdjustCollectionCreditsResponse, work)

    async def _with_figures(self, rows: Sequence[Collection]) -> list[pb.Collection]:
        figures = defaultdict[UUID, list[Figures]](list)
        for each in await self._db.all(SUM_FILES, {"ids": [row.id for row in rows]}):
            figures[each.collection_id].append(each)
        return [collection_rows.to_proto(row, figures[row.id]) for row in rows]


async def _add_file(
    m: Mutation, collection: LockedCollection, text: str, section: str, place: int | None
) -> pb.AddFileResult:
    file_id = UUID(text)
    if not await m.first(_KEEP_TECH_FILE, {"id": file_id}):
        return pb.AddFileResult(tech_file_id=text, outcome=pb.ADD_FILE_OUTCOME_NOT_FOUND)
    added, where = await collection_rows.add_file(m, collection, file_id, section, place)
    outcome = pb.ADD_FILE_OUTCOME_ADDED if added else pb.ADD_FILE_OUTCOME_ALREADY_THERE
    return pb.AddFileResult(
        tech_file_id=text, outcome=outcome, section=where.section, display_order=where.display_order
    )


def _changed_columns(request: pb.UpdateCollectionRequest) -> dict[str, Any]:
    """Returns the columns that the mask names. Raises INVALID_ARGUMENT for an empty name."""
    columns = {name: getattr(request, name) for name in dict.fromkeys(request.update_mask.paths)}
    if not columns.get("name", "-"):
        raise errors.invalid("name", "must have 1 to 200 characters")
    return columns
