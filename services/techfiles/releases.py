"""ReleaseService: one method per call."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from atelier.techfiles.v1 import history_pb2, tech_pack_pb2
from atelier.techfiles.v1 import release_pb2 as pb

from services.techfiles import (
    diffing,
    export_rows,
    freezing,
    history_rows,
    release_rows,
    rules,
    trash_rows,
)
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import Collection, NamedCollection
from services.techfiles.explaining_releases import Explaining, next_step
from services.techfiles.export_rows import Export
from services.techfiles.export_storage import ExportQuotas
from services.techfiles.release_rows import (
    RELEASES,
    SELECT_DOCUMENTS,
    SELECT_LATEST,
    SELECT_RELEASE,
    STATES,
    Release,
)
from services.techfiles.trash import ReleaseTrash
from services.techfiles.views import TechFileViews
from shared.background import jobs, waiting
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging, protos
from shared.rpc.server import Context

# Together below the 4 MiB that clients take.
_FACTS_BYTES = 2_000_000
_SLOTS_BYTES = 1_500_000
_MOST_FILES = 1000
_WARNINGS = 10  # of each document; GetExport has all
_LIST = Listing(RELEASES, Release, hide_deleted=trash_rows.HIDES["hide_deleted"])
_TAKE_NUMBER = Statement(
    int,
    """
    INSERT INTO release_numbers (owner, product_id, last_number)
    VALUES (%(owner)s, %(product_id)s, 1)
    ON CONFLICT ON CONSTRAINT release_numbers_pkey
        DO UPDATE SET last_number = release_numbers.last_number + 1
    RETURNING last_number
    """,
)


class ReleaseService(ReleaseTrash):
    def __init__(
        self,
        db: Database,
        queue: jobs.JobQueue,
        assets: Assets,
        views: TechFileViews,
        quotas: ExportQuotas,
    ) -> None:
        super().__init__(db, timedelta(days=db.settings.trash_days))
        self._queue = queue
        self._assets = assets
        self._views = views
        self._quotas = quotas
        self._explaining = Explaining(db)

    async def CreateRelease(
        self, request: pb.CreateReleaseRequest, context: Context
    ) -> pb.CreateReleaseResponse:
        response = await self._db.stored_answer(request, pb.CreateReleaseResponse)
        if response is None:
            response = await self._create(request)
        if request.wait:
            release_id = UUID(response.release.id)
            row, documents = await self._ended(release_id)
            response = pb.CreateReleaseResponse(
                release=release_rows.to_proto(row),
                documents=map(self._shown, documents),
                next_step=next_step(row, documents),
            )
        return response

    async def _create(self, request: pb.CreateReleaseRequest) -> pb.CreateReleaseResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        files = await self._db.all(freezing.SELECT_FINISHED, {"id": collection_id})
        pictures = {str(file.file_asset_id) for file in files if file.file_asset_id}
        known = await self._assets.describe(sorted(pictures))
        wish = freezing.Wish(
            collection_id,
            request.collection_etag,
            request.name,
            request.note,
            request.nothing_merely_found,
            {
                asset_id: asset.sha256
                for asset_id, asset in known.items()
                if not asset.HasField("bytes_gone_time")
            },
        )

        async def work(m: Mutation) -> pb.CreateReleaseResponse:
            await self._quotas.room(m)
            row, collection = await freezing.freeze(m, wish)
            document = await self._document(m, row, collection.name, "pdf")
            return pb.CreateReleaseResponse(
                release=release_rows.to_proto(row),
                documents=[export_rows.to_proto(document)],
                next_step=next_step(row, [document]),
            )

        return await self._db.mutate(request, pb.CreateReleaseResponse, work)

    async def GetRelease(
        self, request: pb.GetReleaseRequest, context: Context
    ) -> pb.GetReleaseResponse:
        row = await self._release(request.release_id, "release_id")
        named = {"id": row.id}
        documents = await self._db.all(SELECT_DOCUMENTS, named)
        answer = pb.GetReleaseResponse(
            release=release_rows.to_proto(row),
            documents=map(self._shown, documents),
            source_product_id=str(row.source_product_id or ""),
            merely_found=[pb.MerelyFoundValue(**each) for each in row.merely_found],
        )
        collection = await self._frozen(row.id)
        answer.facts.CopyFrom(protos.facts_message(collection.facts))
        answer.fact_sources.CopyFrom(protos.struct(collection.fact_sources))
        await self._add_files(request, row, answer)
        return answer

    async def _add_files(
        self, request: pb.GetReleaseRequest, row: Release, answer: pb.GetReleaseResponse
    ) -> None:
        """Adds a page of the release's files to the answer, as many as still fit."""
        digest = paging.filter_digest(request, ("page_size", "page_token"))
        [after] = paging.key_of(request.page_token, digest, int) if request.page_token else (0,)
        limit = request.page_size or _MOST_FILES
        page = {"id": row.id, "after": after, "limit": limit}
        files = await self._db.all(release_rows.SELECT_FILES, page)
        room = paging.ANSWER_BYTES - answer.ByteSize()
        shown = paging.fitting(map(release_rows.file_to_proto, files), room)
        answer.files.extend(shown)
        if shown and files[len(shown) - 1].position < row.file_count:
            answer.next_page_token = paging.token_of(digest, files[len(shown) - 1].position)

    async def ListReleases(
        self, request: pb.ListReleasesRequest, context: Context
    ) -> pb.ListReleasesResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "product_id": request.product_id,
            "collection_id": parse_id(request.collection_id, "collection_id")
            if request.collection_id
            else None,
            "state": STATES.word.get(request.state),
            "hide_deleted": not request.show_deleted,
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        releases, token = page.fill(rows, map(release_rows.to_proto, page.cut(rows)))
        return pb.ListReleasesResponse(releases=releases, next_page_token=token)

    async def ApproveRelease(
        self, request: pb.ApproveReleaseRequest, context: Context
    ) -> pb.ApproveReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> pb.ApproveReleaseResponse:
            row = await release_rows.lock(m, release_id, request.etag)
            _check_draft(row)
            await self._check_approval(m, row)
            await self._quotas.room(m)
            product = {"owner": m.owner, "product_id": row.product_id}
            number = await m.one(_TAKE_NUMBER, product)
            latest = await m.first(SELECT_LATEST, product)
            if row.previous_id != (latest and latest.id):
                raise _overtaken(row, latest)
            row = await states.move(
                m,
                rules.RELEASE_STATES,
                RELEASES,
                row,
                "approved",
                stamps=("decided_at",),
                number=number,
                decided_by=m.actor,
                decision_note=request.note,
            )
            release = await release_rows.publish(m, row)
            name = (await self._frozen_in(m, row.id)).name
            documents = [
                await self._document(m, row, name, format) for format in export_rows.FORMATS.number
            ]
            return pb.ApproveReleaseResponse(
                release=release,
                documents=map(export_rows.to_proto, documents),
                next_step=next_step(row, documents),
            )

        response = await self._db.mutate(request, pb.ApproveReleaseResponse, work)
        if request.wait:
            row, documents = await self._ended(release_id)
            response = pb.ApproveReleaseResponse(
                release=release_rows.to_proto(row),
                documents=[self._shown(each) for each in documents if not each.draft],
                next_step=next_step(row, documents),
            )
        return response

    async def _check_approval(self, m: Mutation, row: Release) -> None:
        """Raises FAILED_PRECONDITION if this caller may not approve it, or nobody yet."""
        if self._db.settings.release_by_another and m.actor == row.created_by:
            raise errors.precondition(
                f"{m.actor} made it, and another person has to approve it"
                " (ATELIER_RELEASE_BY_ANOTHER)",
                subject=f"releases/{row.id}",
            )
        documents = await m.all(SELECT_DOCUMENTS, {"id": row.id})
        if not any(each.draft and each.has_bytes for each in documents):
            state = documents[0].state if documents else "missing"
            if state == "completed":  # but its bytes are gone
                state = "lost"
            raise errors.precondition(
                f"its document is {state}; wait until it is made, or have it made again"
                " (MakeReleaseDocuments), and look at it",
                subject=f"releases/{row.id}",
                metadata={"state": state},
            )

    async def RejectRelease(
        self, request: pb.RejectReleaseRequest, context: Context
    ) -> pb.RejectReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> pb.RejectReleaseResponse:
            row = await release_rows.lock(m, release_id, request.etag)
            _check_draft(row)
            row = await states.move(
                m,
                rules.RELEASE_STATES,
                RELEASES,
                row,
                "rejected",
                stamps=("decided_at",),
                decided_by=m.actor,
                decision_note=request.note,
            )
            return pb.RejectReleaseResponse(release=await release_rows.publish(m, row))

        return await self._db.mutate(request, pb.RejectReleaseResponse, work)

    async def WithdrawRelease(
        self, request: pb.WithdrawReleaseRequest, context: Context
    ) -> pb.WithdrawReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> pb.WithdrawReleaseResponse:
            row = await release_rows.lock(m, release_id, request.etag)
            if row.state != "approved":
                text = f"the release is {row.state}; only an approved one can be withdrawn"
                raise _wrong_state(row, text)
            row = await states.move(
                m,
                rules.RELEASE_STATES,
                RELEASES,
                row,
                "withdrawn",
                stamps=("withdrawn_at",),
                withdrawn_by=m.actor,
                withdraw_reason=request.reason,
            )
            return pb.WithdrawReleaseResponse(release=await release_rows.publish(m, row))

        return await self._db.mutate(request, pb.WithdrawReleaseResponse, work)

    async def MakeReleaseDocuments(
        self, request: pb.MakeReleaseDocumentsRequest, context: Context
    ) -> pb.MakeReleaseDocumentsResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> pb.MakeReleaseDocumentsResponse:
            row = await release_rows.lock(m, release_id)
            if row.deleted_at:
                raise _wrong_state(row, "it is deleted; undelete it first (UndeleteRelease)")
            there = await m.all(SELECT_DOCUMENTS, {"id": row.id})
            missing = _missing(row, there)
            if not missing:
                raise _wrong_state(row, "every document is there or on its way (GetRelease)")
            await self._quotas.room(m)
            name = (await self._frozen_in(m, row.id)).name
            gone = [each for each in there if _is_gone(each) and each.format in missing]
            await trash_rows.purge_exports(m, gone)
            made = [await self._document(m, row, name, format) for format in missing]
            kept = [each for each in there if each not in gone]
            return pb.MakeReleaseDocumentsResponse(documents=map(self._shown, [*made, *kept]))

        return await self._db.mutate(request, pb.MakeReleaseDocumentsResponse, work)

    async def CompareReleases(
        self, request: pb.CompareReleasesRequest, context: Context
    ) -> pb.CompareReleasesResponse:
        after = await self._release(request.after_release_id, "after_release_id")
        earlier = request.before_release_id or str(after.previous_id or "")
        if not earlier:
            text = (
                "no release of the product was approved before it; name the one to compare with"
                " (before_release_id)"
            )
            raise _wrong_state(after, text)
        before = await self._release(earlier, "before_release_id")
        if before.product_id != after.product_id:
            text = (
                f"is of the product {after.product_id}, and the earlier one of"
                f" {before.product_id}; compare releases of one product"
            )
            raise errors.invalid("after_release_id", text)
        facts = await asyncio.to_thread(
            _compared, await self._frozen(before.id), await self._frozen(after.id)
        )
        answer = pb.CompareReleasesResponse(
            before=release_rows.to_proto(before), after=release_rows.to_proto(after), facts=facts
        )
        slots = await release_rows.slots_between(self._db, before.id, after.id)
        answer.slots.extend(paging.fitting(slots, _SLOTS_BYTES))
        answer.slots_left_out = len(slots) - len(answer.slots)
        answer.identical = facts.identical and not slots
        return answer

    async def ExplainRelease(
        self, request: pb.ExplainReleaseRequest, context: Context
    ) -> pb.ExplainReleaseResponse:
        return await self._explaining.explain(await self._release(request.release_id, "release_id"))

    def _shown(self, document: Export) -> tech_pack_pb2.Export:
        message = self._views.export(document)
        del message.warnings[_WARNINGS:]
        return message

    async def _document(self, m: Mutation, row: Release, name: str, format: str) -> Export:
        """Adds a document of the release, which a worker makes."""
        named = NamedCollection(row.collection_id, f"{name}, {row.title.lower()}", None)
        document = await export_rows.create(
            m, new_id(), named, format, None, release_id=row.id, draft=row.number is None
        )
        await self._queue.enqueue(m, export_rows.TASK, export_rows.QUEUE, document.id)
        return document

    async def _ended(self, release_id: UUID) -> tuple[Release, Sequence[Export]]:
        """Returns the release and its documents once these have ended, or as they are shortly
        before the call's deadline."""

        async def read() -> list[Export]:
            return await self._db.all(SELECT_DOCUMENTS, {"id": release_id})

        documents = await waiting.until_seen(
            read, lambda rows: all(row.state in rules.ENDED for row in rows), waiting.patience()
        )
        row = await self._db.first(SELECT_RELEASE, {"id": release_id})
        if row is None:  # purged meanwhile
            raise errors.not_found("release", release_id)
        return row, documents

    async def _release(self, text: str, field: str) -> Release:
        row = await self._db.first(SELECT_RELEASE, {"id": parse_id(text, field)})
        if row is None:
            raise errors.not_found("release", text)
        return row

    async def _frozen(self, release_id: UUID) -> Collection:
        async with self._db.transaction(auth.current().owner) as m:
            return await self._frozen_in(m, release_id)

    async def _frozen_in(self, m: Mutation, release_id: UUID) -> Collection:
        frozen = await m.first(release_rows.SELECT_COLLECTION, {"id": release_id})
        if frozen is None:  # purged meanwhile
            raise errors.not_found("release", release_id)
        return release_rows.collection_of(frozen)


def _check_draft(row: Release) -> None:
    if row.deleted_at:
        raise _wrong_state(row, "the release is deleted; undelete it first (UndeleteRelease)")
    if row.state != "draft":
        by = f" by {row.decided_by}" if row.decided_by else ""
        text = f"the release is {row.state}{by}; only a draft can be decided (CreateRelease)"
        raise _wrong_state(row, text)


def _wrong_state(row: Release, text: str) -> errors.DomainError:
    return errors.precondition(
        text, subject=f"releases/{row.id}", metadata={"state": row.state.upper()}
    )


def _overtaken(row: Release, latest: Release | None) -> errors.DomainError:
    now = f"release {latest.number} is the latest one" if latest else "no release is approved now"
    was = f"release {row.previous_number}" if row.previous_number else "no release before"
    text = (
        f"it was compared with {was}, but {now}; make another draft (CreateRelease), so that its"
        " document says what changed since then"
    )
    return _wrong_state(row, text)


def _is_gone(document: Export) -> bool:
    return document.state == "failed" or document.bytes_gone_at is not None


def _missing(row: Release, there: Sequence[Export]) -> list[str]:
    """Returns the formats of those documents that neither are there nor on their way: of a release
    with a number its PDF and ZIP, else its draft."""
    draft = row.number is None
    wanted = ["pdf"] if draft else list(export_rows.FORMATS.number)
    kept = {each.format for each in there if each.draft == draft and not _is_gone(each)}
    return [format for format in wanted if format not in kept]


def _compared(before: Collection, after: Collection) -> history_pb2.ContentChanges:
    """Compares the facts. It runs in a thread, since large ones take a second."""
    changes = diffing.compare({"facts": before.facts}, {"facts": after.facts})
    return history_rows.changes_to_proto(changes, "", "", _FACTS_BYTES)
