"""MarkingService: reads the marks of pictures, and says which disclosure follows from their
lineage."""

import asyncio
import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from atelier.assets.v1 import asset_pb2, duplicate_pb2, duplicate_pb2_grpc, upload_pb2
from atelier.conversions.v1 import marking_pb2 as pb
from atelier.conversions.v1 import marking_pb2_grpc

from services.conversions import ancestry, assets, copy_rows, disclosure
from services.conversions.ancestry import Ancestor, Maker
from services.conversions.job_kinds import KINDS
from services.conversions.labelling import Label, LabelRefused, add_label
from services.conversions.runs.marking import Marker
from shared.database.db import Database, Mutation, forget_answer
from shared.database.ids import new_id, parse_id
from shared.formats import names
from shared.imaging import (
    Claim,
    Credentials,
    Facts,
    ImageRejected,
    ImagingPool,
    Ingredient,
    Limits,
    SigningFailed,
    inspect,
    read_credentials,
)
from shared.rpc import auth, errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError
from shared.rpc.protos import EnumNames
from shared.rpc.server import Context

STATES = EnumNames(pb.MarkState, "MARK_STATE_")
DUTIES = EnumNames(pb.DisclosureDuty, "DISCLOSURE_DUTY_")
CAUSES = EnumNames(pb.DisclosureCause, "DISCLOSURE_CAUSE_")
_SECONDS = 20.0
_REASONS = 100
_ROOM = 1024 * 1024  # that a signature may need
_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
# Kinds that a labelled copy has like its picture, since rules hang on them; others are GENERATED.
_KEPT_KINDS = assets.PHOTOGRAPHS | {
    asset_pb2.ASSET_KIND_RESULT,
    asset_pb2.ASSET_KIND_CLOSEUP,
    asset_pb2.ASSET_KIND_SKETCH,
}
_HOLDING = (asset_pb2.CREDENTIALS_STATE_TRUSTED, asset_pb2.CREDENTIALS_STATE_VALID)


class MarkingService(marking_pb2_grpc.MarkingServiceServicer):
    def __init__(
        self,
        db: Database,
        peers: Peers,
        pool: ImagingPool,
        limits: Limits,
        trust_anchors: str,
        marker: Marker | None,
        fonts: Sequence[Path],
    ) -> None:
        """`trust_anchors`: PEM certificates whose signers are trusted. `marker` None: labelled
        pictures aren't signed. `fonts`: those of labels, besides the bundled ones."""
        self._db = db
        self._peers = peers
        self._pool = pool
        self._limits = limits
        self._trust_anchors = trust_anchors
        self._marker = marker
        self._fonts = fonts

    async def VerifyMark(
        self, request: pb.VerifyMarkRequest, context: Context
    ) -> pb.VerifyMarkResponse:
        if request.asset_id:
            return await self._mark_of_asset(request.asset_id)
        return await self._mark_of_content(request.content)

    async def GetDisclosure(
        self, request: pb.GetDisclosureRequest, context: Context
    ) -> pb.GetDisclosureResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        [asset] = await assets.check(self._peers, [assets.Wanted("asset_id", str(asset_id))])
        # What no job made may say itself what it was made from, such as a labelled copy.
        stated = [UUID(each) for each in asset.provenance.source_asset_ids]
        before = [
            *(Ancestor(each, "") for each in stated),
            *await ancestry.ancestors(self._db, [asset_id, *stated]),
        ]
        made_from = before[: ancestry.MOST_INPUTS]
        ids = list(dict.fromkeys(each.asset_id for each in made_from))
        makers = await ancestry.makers(self._db, [asset_id, *ids])
        seen = await self._peers.assets(map(str, ids)) if ids else {}
        found = disclosure.causes(
            _source(asset_id, asset, [], makers),
            [_source(each, seen.get(str(each)), made_from, makers) for each in ids],
        )
        return pb.GetDisclosureResponse(
            duty=DUTIES.number[disclosure.duty(found)],
            reasons=[_reason(each, makers) for each in found[:_REASONS]],
            marked=asset.content_credentials.state in _HOLDING,
            truncated=len(found) > _REASONS or len(before) > len(made_from),
        )

    async def CreateLabelledPicture(
        self, request: pb.CreateLabelledPictureRequest, context: Context
    ) -> pb.CreateLabelledPictureResponse:
        if before := await self._db.stored_answer(request, pb.CreateLabelledPictureResponse):
            return before
        [asset] = await assets.check(self._peers, [assets.Wanted("asset_id", request.asset_id)])
        with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
            copy = await self._labelled(request, asset, Path(directory))
            declaration = _declaration(asset, copy)
            # A name of its own: two signatures of one picture differ, so that a repeat after a
            # crash would be another upload under the same name.
            request_id = f"conversions/labels/{new_id()}"
            made = await self._peers.upload(declaration, copy, request_id=request_id)

        async def keep(m: Mutation) -> pb.CreateLabelledPictureResponse:
            await copy_rows.note(m, UUID(made.id), UUID(asset.id))
            return pb.CreateLabelledPictureResponse(asset_id=made.id)

        answer: pb.CreateLabelledPictureResponse | None = None
        try:
            answer = await self._db.mutate(request, pb.CreateLabelledPictureResponse, keep)
        finally:
            if answer is None or answer.asset_id != made.id:  # a repeat at the same time was faster
                await assets.purge(self._peers, UUID(made.id))
        await self._check_original(request, UUID(answer.asset_id))
        return answer

    async def _check_original(
        self, request: pb.CreateLabelledPictureRequest, copy_id: UUID
    ) -> None:
        """Purges a copy whose original was purged while it was made, and raises NOT_FOUND.

        RevokeConsent purges pictures first, and then looks for copies that were noted meanwhile. So
        it finds the copy, or its original is gone here.
        """
        try:
            await assets.check(self._peers, [assets.Wanted("asset_id", request.asset_id)])
        except DomainError:
            identity = auth.current()
            async with self._db.transaction(identity.owner, identity.actor) as m:
                await forget_answer(m, request)
            await assets.purge(self._peers, copy_id)
            raise

    async def _labelled(
        self, request: pb.CreateLabelledPictureRequest, asset: asset_pb2.Asset, directory: Path
    ) -> Path:
        """Returns the file of a copy with the label, signed if this deployment signs."""
        original = directory / "original"
        head = await self._peers.download(asset.id, original)
        mime_type = asset.mime_type if asset.mime_type in _SUFFIXES else "image/jpeg"
        out = directory / f"labelled{_SUFFIXES[mime_type]}"
        label = Label(
            request.text,
            top=request.corner in (pb.LABEL_CORNER_TOP_LEFT, pb.LABEL_CORNER_TOP_RIGHT),
            left=request.corner in (pb.LABEL_CORNER_TOP_LEFT, pb.LABEL_CORNER_BOTTOM_LEFT),
            source_type=asset.digital_source_type,
        )
        largest = self._limits.image_bytes - _ROOM
        parent = Ingredient("original", original, asset.mime_type, head.sha256, parent=True)
        claim = Claim(mime_type, label.source_type, "", "", "", (parent,), "c2pa.edited")
        try:
            await self._pool.run(
                add_label, original, out, label, self._fonts, largest, timeout=_SECONDS
            )
            return await self._marker.sign(out, claim) if self._marker else out
        except LabelRefused as refusal:
            raise errors.invalid("text", refusal.message) from None
        except ImageRejected as refusal:
            raise errors.invalid("asset_id", refusal.message) from None
        except SigningFailed:
            raise errors.unavailable("the copy can't be signed", "conversions") from None

    async def _mark_of_asset(self, asset_id: str) -> pb.VerifyMarkResponse:
        [asset] = await assets.check(self._peers, [assets.Wanted("asset_id", asset_id)])
        answer = pb.VerifyMarkResponse(sha256=asset.sha256)
        if asset.HasField("content_credentials"):
            answer.manifest.CopyFrom(_manifest_of(asset.content_credentials))
        recorded = await self._recorded(asset)
        if recorded.job_id or asset.HasField("provenance"):
            answer.registry_match.CopyFrom(recorded)
        elif not answer.manifest.digital_source_type:
            answer.stated_source_type = asset.digital_source_type
        return _concluded(answer)

    async def _mark_of_content(self, content: bytes) -> pb.VerifyMarkResponse:
        facts, credentials = await self._read(content)
        answer = pb.VerifyMarkResponse(sha256=hashlib.sha256(content).hexdigest())
        if credentials:
            answer.manifest.CopyFrom(_manifest(credentials))
        if match := await self._match(answer.sha256):
            answer.registry_match.CopyFrom(match)
        answer.stated_source_type = facts.source_type
        return _concluded(answer)

    async def _read(self, content: bytes) -> tuple[Facts, Credentials | None]:
        """Checks the bytes of a caller, and reads their manifest, in a child process."""
        with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
            path = Path(directory, "content")
            await asyncio.to_thread(path.write_bytes, content)
            try:
                check = functools.partial(inspect, path, None, self._limits)
                facts = await self._pool.run(check, timeout=_SECONDS)
            except ImageRejected as refusal:
                raise errors.invalid("content", refusal.message) from None
            if not facts.mime_type.startswith("image/"):
                raise errors.invalid("content", f"is of type {facts.mime_type}; send a picture")
            if not facts.may_have_manifest:
                return facts, None
            read = functools.partial(read_credentials, path, facts.mime_type, self._trust_anchors)
            try:
                return facts, await self._pool.run(read, timeout=_SECONDS)
            except ImageRejected:
                return facts, Credentials(state="unreadable")

    async def _match(self, sha256: str) -> pb.RegistryMatch | None:
        """Returns the newest asset of the caller's with these bytes."""
        request = duplicate_pb2.FindDuplicatesRequest(sha256s=[sha256])
        stub = self._peers.stub(duplicate_pb2_grpc.DuplicateServiceStub)
        answer: duplicate_pb2.FindDuplicatesResponse = await stub.FindDuplicates(request)
        if not answer.groups:
            return None
        newest = answer.groups[0].assets[0]
        found = await self._peers.assets([newest.asset_id])
        asset = found.get(newest.asset_id)
        if asset is None:  # it was purged meanwhile
            return None
        return await self._recorded(asset)

    async def _recorded(self, asset: asset_pb2.Asset) -> pb.RegistryMatch:
        """Returns what is recorded about the origin of an asset."""
        maker = (await ancestry.makers(self._db, [UUID(asset.id)])).get(UUID(asset.id))
        return pb.RegistryMatch(
            asset_id=asset.id,
            digital_source_type=asset.digital_source_type,
            job_id=str(maker.job_id) if maker else "",
            job_kind=KINDS[maker.job].number if maker else None,
            provider=maker.provider if maker else "",
            model=maker.model if maker and maker.model else asset.provenance.model,
            in_trash=asset.HasField("delete_time"),
        )


def _declaration(asset: asset_pb2.Asset, copy: Path) -> upload_pb2.UploadDeclaration:
    made = asset_pb2.Provenance(
        source_asset_ids=[asset.id], digital_source_type=asset.digital_source_type
    )
    return upload_pb2.UploadDeclaration(
        kind=asset.kind if asset.kind in _KEPT_KINDS else asset_pb2.ASSET_KIND_GENERATED,
        file_name=f"labelled{copy.suffix}",
        mime_type=next(kind for kind, suffix in _SUFFIXES.items() if suffix == copy.suffix),
        scope=asset.scope,
        # A photograph says nothing of how it was made; copy_rows has of what the copy was.
        provenance=None if asset.kind in assets.PHOTOGRAPHS else made,
    )


def _concluded(answer: pb.VerifyMarkResponse) -> pb.VerifyMarkResponse:
    """Says what was found, and what that rests on."""
    match = answer.registry_match
    known = bool(match.job_id or match.model or match.digital_source_type)
    if answer.HasField("manifest"):
        answer.found = pb.MARK_KIND_MANIFEST
        answer.rests_on.append(_BY_STATE[answer.manifest.state])
    elif answer.HasField("registry_match") and known:
        answer.found = pb.MARK_KIND_REGISTRY_MATCH
    else:
        answer.found = pb.MARK_KIND_NOTHING
        answer.rests_on.append(
            "the file has no manifest, and no origin is recorded for its bytes; nothing was guessed"
            " from pixels, so that a model may have made it all the same"
        )
    if answer.HasField("registry_match"):
        answer.rests_on.append(_registry_text(match))
    if answer.stated_source_type:
        answer.rests_on.append("the file's XMP states an origin; anybody can write it")
    return answer


_BY_STATE = {
    pb.MARK_STATE_TRUSTED: "the manifest's signature holds for these bytes, and its certificate"
    " leads to one that the operator trusts",
    pb.MARK_STATE_VALID: "the manifest's signature holds for these bytes; who signed isn't known"
    " here, and anybody can make a certificate",
    pb.MARK_STATE_INVALID: "there is a manifest that doesn't hold: the file or the manifest was"
    " changed after signing, or the signature is none",
    pb.MARK_STATE_UNREADABLE: "there is a manifest that can't be read",
}


def _registry_text(match: pb.RegistryMatch) -> str:
    if match.job_id:
        return "a job of yours made a file with the same bytes"
    if match.model or match.digital_source_type:
        return (
            "an asset of the same bytes is here, with an origin that its upload or its file states"
        )
    return "an asset of the same bytes is here; nobody said where it comes from"


def _manifest(credentials: Credentials) -> pb.MarkManifest:
    return pb.MarkManifest(
        state=STATES.number[credentials.state],
        claim_generator=names.shown(credentials.claim_generator),
        signer=names.shown(credentials.signer),
        signer_name=names.shown(credentials.signer_name),
        sign_time=names.shown(credentials.signed_at),
        digital_source_type=credentials.source_type,
        problems=[names.shown(problem) for problem in credentials.problems],
    )


def _manifest_of(credentials: asset_pb2.ContentCredentials) -> pb.MarkManifest:
    word = asset_pb2.CredentialsState.Name(credentials.state).removeprefix("CREDENTIALS_STATE_")
    return pb.MarkManifest(
        state=STATES.number[word.lower()],
        claim_generator=credentials.claim_generator,
        signer=credentials.signer,
        signer_name=credentials.signer_name,
        sign_time=credentials.sign_time,
        digital_source_type=credentials.digital_source_type,
        problems=credentials.problems,
    )


def _source(
    asset_id: UUID,
    asset: asset_pb2.Asset | None,
    made_from: list[Ancestor],
    makers: dict[UUID, Maker],
) -> disclosure.Source:
    roles = frozenset(each.role for each in made_from if each.asset_id == asset_id)
    if asset is None:
        return disclosure.Source(str(asset_id), roles, gone=True)
    return disclosure.Source(
        str(asset_id),
        roles,
        asset.digital_source_type,
        is_person=asset.kind == asset_pb2.ASSET_KIND_USER,
        made_here=asset_id in makers,
    )


def _reason(cause: disclosure.Cause, makers: dict[UUID, Maker]) -> pb.DisclosureReason:
    maker = makers.get(UUID(cause.asset_id))
    return pb.DisclosureReason(
        cause=CAUSES.number[cause.cause],
        asset_id=cause.asset_id,
        job_id=str(maker.job_id) if maker else "",
        text=cause.text,
    )
