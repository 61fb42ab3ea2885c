"""ExplainAsset: shows each condition that decides what the caller sees of an asset, as a question
with its answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc

from services.assets.core import rules
from services.assets.core.asset_rows import ASSETS, VARIANTS, Asset, Variant
from services.assets.core.reference_rows import Holder, how_to_release
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.server import Context


@dataclass(slots=True)
class _Explained(Asset):
    """An asset, how it is being uploaded, and its product's primary image."""

    asked_at: datetime
    upload_id: UUID | None
    upload_until: datetime | None
    parts_id: UUID | None
    parts_until: datetime | None
    import_state: str | None
    import_error: str | None
    primary_id: UUID | None


@dataclass(slots=True)
class _NextTry:
    scheduled_at: datetime | None


_SELECT_ASSET = Statement(
    _Explained,
    f"""
    SELECT {ASSETS.of("a")}, now() AS asked_at, u.id AS upload_id, u.expires_at AS upload_until,
        r.id AS parts_id, r.expires_at AS parts_until, i.state AS import_state,
        i.error_message AS import_error,
        (SELECT p.id FROM assets p WHERE p.owner = a.owner AND p.product_id = a.product_id
            AND a.product_id <> '' AND p.is_primary) AS primary_id
    FROM assets a LEFT JOIN uploads u ON u.asset_id = a.id
        LEFT JOIN resumable_uploads r ON r.asset_id = a.id
        LEFT JOIN imports i ON i.asset_id = a.id
    WHERE a.id = %(id)s
    """,
)
_SELECT_VARIANTS = Statement(
    Variant, f"SELECT {VARIANTS.columns} FROM variants WHERE asset_id = %(id)s ORDER BY preset"
)
_SELECT_HOLDERS = Statement(
    Holder,
    """
    SELECT asset_id, owner, holder, service FROM asset_references WHERE asset_id = %(id)s
    ORDER BY created_at DESC, holder LIMIT 10
    """,
)
# Reads from the queue when the next attempt of the job that makes the variants begins.
_SELECT_NEXT_TRY = Statement(
    _NextTry,
    """
    SELECT j.scheduled_at
    FROM renditions r JOIN procrastinate_jobs j ON j.args ->> 'row_id' = r.id::text
    WHERE r.asset_id = %(id)s AND r.state = 'pending' AND j.status = 'todo'
    ORDER BY j.id DESC LIMIT 1
    """,
)


class ExplainCalls(asset_pb2_grpc.AssetServiceServicer):
    """Implements ExplainAsset of AssetService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ExplainAsset(
        self, request: pb.ExplainAssetRequest, context: Context
    ) -> pb.ExplainAssetResponse:
        one = {"id": parse_id(request.asset_id, "asset_id")}
        asset = await self._db.first(_SELECT_ASSET, one)
        if asset is None:
            raise errors.not_found("asset", request.asset_id)
        findings = [
            _owner(asset),
            _state(asset),
            _bytes(asset),
            _trash(asset),
            _archive(asset),
            _visibility(asset),
        ]
        if asset.state == "ready" and asset.mime_type != rules.PDF:
            waiting = await self._db.first(_SELECT_NEXT_TRY, one)
            rows = await self._db.all(_SELECT_VARIANTS, one)
            findings.append(_variants(rows, waiting.scheduled_at if waiting else None))
        if asset.owner == auth.current().owner:
            findings.append(_holders(await self._db.all(_SELECT_HOLDERS, one), asset.owner))
            if asset.product_id:
                findings.append(_primary(asset))
        wrong = [finding for finding in findings if not finding.ok]
        summary = (
            f"{wrong[0].question} {wrong[0].answer}"
            if wrong
            else "nothing keeps it from being seen and used"
        )
        return pb.ExplainAssetResponse(summary=summary, findings=findings)


def _owner(asset: _Explained) -> pb.Finding:
    mine = asset.owner == auth.current().owner
    return pb.Finding(
        question="does it exist for you?",
        ok=True,
        answer=(
            "yes, it is yours"
            if mine
            else "yes, it is another owner's and public; you can read and use it"
        ),
    )


def _state(asset: _Explained) -> pb.Finding:
    asked = "is it verified?"
    if asset.state == "ready":
        return pb.Finding(
            question=asked, ok=True, answer=f"yes: {asset.size_bytes} bytes of {asset.mime_type}"
        )
    if asset.state == "rejected":
        return pb.Finding(
            question=asked,
            answer=f"no, it was refused ({asset.rejection}): {asset.rejection_message}",
            next_step="upload it again as a new asset; this one stays as it is until you delete it",
        )
    answer, next_step = _missing(asset)
    return pb.Finding(question=asked, answer=answer, next_step=next_step)


def _missing(asset: _Explained) -> tuple[str, str]:
    """Returns what a PENDING asset waits for and the next step: both depend on how it is sent."""
    if asset.import_state:  # under way: an import that ends without the file rejects the asset
        # The error's advice, after the semicolon, is left out.
        tried = f"; so far: {asset.import_error.partition(';')[0]}" if asset.import_error else ""
        return (
            f"no, the server is fetching it from its URL{tried}",
            "wait: WatchAssets and GetAsset tell the end",
        )
    if asset.parts_until:
        complete = f"CompleteResumableUpload with upload_id {asset.parts_id}"
        if asset.parts_until > asset.asked_at:
            answer = (
                "no, its parts have not been sent and joined; they are taken until"
                f" {_at(asset.parts_until)}"
            )
            return answer, f"send what GetResumableUpload says is missing, then {complete}"
        answer = "no, it was not completed before it expired; the next cleanup removes it"
        return answer, f"if all parts were sent: {complete}; else upload it anew"
    if asset.upload_until and asset.upload_until > asset.asked_at:
        answer = (
            "no, its bytes have not been sent and confirmed; its URL works until"
            f" {_at(asset.upload_until)}"
        )
        return (
            answer,
            f"send the file, then UploadService/ConfirmUpload with upload_id {asset.upload_id}",
        )
    answer = "no, nothing was confirmed before its URL expired; the next cleanup removes it"
    return (
        answer,
        (
            f"if the file was sent: ConfirmUpload with upload_id {asset.upload_id}; else upload it"
            " anew"
        ),
    )


def _bytes(asset: _Explained) -> pb.Finding:
    asked = "are its bytes there?"
    if asset.bytes_gone_at:
        return pb.Finding(
            question=asked,
            answer=f"no, they were found lost or damaged at {_at(asset.bytes_gone_at)}",
            next_step=(
                "upload the file again as a new asset, or have the operator restore it from a"
                " backup"
            ),
        )
    if asset.state == "pending":
        return pb.Finding(question=asked, ok=True, answer="not yet, it is not verified")
    if asset.state == "rejected":
        return pb.Finding(question=asked, ok=True, answer="no, what was refused is removed")
    return pb.Finding(
        question=asked, ok=True, answer="yes, as far as the last comparison with the store knows"
    )


def _trash(asset: _Explained) -> pb.Finding:
    if not asset.deleted_at or not asset.expires_at:
        return pb.Finding(question="is it deleted?", ok=True, answer="no")
    again = " and it becomes public again" if asset.hidden_public else ""
    expired = asset.expires_at < asset.asked_at
    until = (
        f"since {_at(asset.expires_at)} it may go at any time"
        if expired
        else f"until {_at(asset.expires_at)}"
    )
    return pb.Finding(
        question="is it deleted?",
        answer=f"yes, since {_at(asset.deleted_at)}; it can be recovered: {until}",
        next_step=f"UndeleteAsset brings it back{again}; PurgeAsset removes it now",
    )


def _archive(asset: _Explained) -> pb.Finding:
    if not asset.archived_at:
        state = asset.state.upper()
        listed = "yes" if state == "READY" else f"only if the list is asked for state {state}"
        if asset.deleted_at:
            listed = (
                "only with show_deleted" if state == "READY" else f"{listed}, with show_deleted"
            )
        return pb.Finding(question="is it in lists?", ok=True, answer=listed)
    return pb.Finding(
        question="is it in lists?",
        answer=f"no, it was archived at {_at(asset.archived_at)}; it works by its id",
        next_step="list with show_archived, or UnarchiveAsset",
    )


def _visibility(asset: _Explained) -> pb.Finding:
    if asset.public:
        seen = (
            "everyone, and everyone who has its URL"
            if asset.state == "ready"
            else "only you, until it is verified"
        )
    else:
        seen = "only you" if asset.owner == auth.current().owner else "only its owner"
    return pb.Finding(question="who can see it?", ok=True, answer=seen)


def _variants(rows: Sequence[Variant], next_try: datetime | None) -> pb.Finding:
    asked = "are its variants there?"
    if not rows:
        step = "RegenerateVariants makes them"
        return pb.Finding(question=asked, ok=True, answer="none were asked for", next_step=step)
    failed = [row for row in rows if row.state == "failed"]
    answer = "; ".join(_variant_answers(rows, next_try))
    step = "RegenerateVariants tries again" if failed else ""
    return pb.Finding(question=asked, ok=not failed, answer=answer, next_step=step)


def _variant_answers(rows: Sequence[Variant], next_try: datetime | None) -> Iterator[str]:
    for row in rows:
        if row.state == "ready":
            yield f"{row.preset}: ready, {row.width} x {row.height}"
        elif row.state == "failed":
            yield f"{row.preset}: failed ({row.error_class}): {row.error_message}"
        elif row.state == "pending" and next_try:
            yield f"{row.preset}: pending, its next try begins at {_at(next_try)}"
        else:
            yield f"{row.preset}: {row.state}"


def _holders(rows: Sequence[Holder], owner: str) -> pb.Finding:
    if not rows:
        return pb.Finding(question="does anything use it?", ok=True, answer="no, it can be deleted")
    names = ", ".join(row.named(owner) for row in rows)
    return pb.Finding(
        question="does anything use it?",
        ok=True,
        answer=f"yes: {names}",
        next_step=f"to delete it, {how_to_release(rows, owner)}, or send `force`; ListReferences"
        " has all",
    )


def _primary(asset: _Explained) -> pb.Finding:
    asked = f"is it the primary image of product {asset.product_id}?"
    if asset.is_primary:
        return pb.Finding(question=asked, ok=True, answer="yes")
    other = f"no, {asset.primary_id} is" if asset.primary_id else "no, and no other is"
    return pb.Finding(
        question=asked, ok=True, answer=other, next_step="UpdateAsset with primary makes it so"
    )


def _at(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
