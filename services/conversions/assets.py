"""Calls to `assets`: checks that the caller may use pictures, reads their URLs, and acquires and
releases references, which keep pictures from being deleted."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from atelier.assets.v1 import (
    asset_pb2,
    asset_pb2_grpc,
    upload_pb2,
    upload_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from atelier.conversions.v1 import conversion_pb2, generation_pb2
from google.rpc import error_details_pb2

from services.conversions import rules
from shared.background import attempts
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

REFERENCE_SECONDS = 30.0  # a call about references takes effect within this time, or never
# A reference that was being acquired when its holder ended may take effect after the release, so
# the release is repeated after this time.
SETTLED_AFTER = timedelta(seconds=2 * REFERENCE_SECONDS)
RETRY_AFTER = timedelta(seconds=10)  # if assets refuses, or is away
_STATES = {
    asset_pb2.ASSET_STATE_PENDING: "it is pending; confirm its upload, then repeat",
    asset_pb2.ASSET_STATE_REJECTED: "its upload was rejected; use another picture",
}
# The kinds of pictures that a job which drops its inputs deletes.
PHOTOGRAPHS = frozenset({asset_pb2.ASSET_KIND_USER, asset_pb2.ASSET_KIND_PHOTO})
# Kinds of what jobs make; outside workers upload theirs as references.
MADE = frozenset(
    {
        asset_pb2.ASSET_KIND_RESULT,
        asset_pb2.ASSET_KIND_GENERATED,
        asset_pb2.ASSET_KIND_CLOSEUP,
        asset_pb2.ASSET_KIND_SKETCH,
        asset_pb2.ASSET_KIND_REFERENCE,
    }
)
# Refusals that don't say that a picture can't be used, and the error class that is recorded for
# each.
_CLASSES: Mapping[int, str] = {
    Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE: rules.UNAVAILABLE,
    Reason.ERROR_REASON_SHUTTING_DOWN: rules.UNAVAILABLE,
    Reason.ERROR_REASON_OVERLOADED: rules.RATE_LIMITED,
    Reason.ERROR_REASON_TOO_MANY_CALLS: rules.RATE_LIMITED,
    Reason.ERROR_REASON_REQUEST_IN_PROGRESS: rules.UNAVAILABLE,
    Reason.ERROR_REASON_STORAGE_FULL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_INTERNAL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_DEADLINE: rules.TIMED_OUT,
    Reason.ERROR_REASON_CONSENT_REQUIRED: rules.CONSENT,
}


@dataclass(frozen=True)
class Wanted:
    """A picture that a request names in `field`. `kind` 0: any kind is allowed."""

    field: str
    asset_id: str
    kind: int = asset_pb2.ASSET_KIND_UNSPECIFIED


def each_once(ids: Sequence[str], field: str) -> list[UUID]:
    """Returns the ids. Raises INVALID_ARGUMENT if two are the same: protovalidate compares texts,
    where case counts."""
    seen: dict[UUID, int] = {}
    for index, text in enumerate(ids):
        earlier = seen.setdefault(UUID(text), index)
        if earlier != index:
            raise errors.invalid(f"{field}[{index}]", f"names the same asset as {field}[{earlier}]")
    return list(seen)


async def check(peers: Peers, wanted: Sequence[Wanted]) -> list[asset_pb2.Asset]:
    """Returns the assets in the order of `wanted`. Each is READY, a picture, of the wanted kind,
    and readable by the caller.

    Raises NOT_FOUND, FAILED_PRECONDITION or INVALID_ARGUMENT for the first that isn't, and names
    its field.
    """
    found = await peers.assets(item.asset_id for item in wanted)
    return [_usable(item, found.get(item.asset_id.lower())) for item in wanted]


def _usable(item: Wanted, asset: asset_pb2.Asset | None) -> asset_pb2.Asset:
    metadata = {"field": item.field}
    if asset is None:
        refusal = errors.not_found("asset", item.asset_id)
        refusal.metadata.update(metadata)
        raise refusal
    if item.kind and asset.kind != item.kind:
        has, needs = (_kind(kind) for kind in (asset.kind, item.kind))
        raise errors.invalid(
            item.field, f"is of kind {has}; an asset of kind {needs} is needed here"
        )
    if asset.state != asset_pb2.ASSET_STATE_READY:
        raise errors.precondition(
            _STATES[asset.state], subject=f"assets/{asset.id}", metadata=metadata
        )
    if not asset.mime_type.startswith("image/"):
        raise errors.invalid(item.field, f"is of type {asset.mime_type}; a picture is needed here")
    return asset


def is_there(asset: asset_pb2.Asset | None) -> bool:
    """Returns whether a picture that was usable once still is: False if it was deleted by force."""
    ready = asset_pb2.ASSET_STATE_READY
    return asset is not None and asset.state == ready and not asset.HasField("delete_time")


def _kind(kind: int) -> str:
    return asset_pb2.AssetKind.Name(kind).removeprefix("ASSET_KIND_")


def error_class(refusal: DomainError) -> str:
    """Returns the error class that is recorded for a refusal of assets, or of the pictures' use: a
    final one, unless the refusal says nothing about the pictures."""
    return _CLASSES.get(refusal.reason, rules.BAD_INPUT)


def verdict(refusal: DomainError) -> attempts.Waits | attempts.JobFailed:
    """Returns how an attempt ends that met this refusal of assets."""
    found = attempts.verdict(refusal)
    found.error_class = error_class(refusal)
    return found


async def acquire(
    peers: Peers, holder: str, asset_ids: Sequence[UUID], *, conversion_id: str = ""
) -> list[asset_pb2.Asset]:
    """Acquires a reference of `holder` to each of these READY assets, which keeps it from being
    deleted. Returns the assets in order.

    `conversion_id`: the assets are inputs of that conversion, which goes into their history.

    The request has no id: a repeat changes nothing, and a stored answer would hide that the
    references were released meanwhile. Raises NOT_FOUND, FAILED_PRECONDITION (not READY) or
    UNAVAILABLE.
    """
    if not asset_ids:
        return []
    request = asset_pb2.AcquireReferencesRequest(
        holder=holder, asset_ids=[str(each) for each in asset_ids], conversion_id=conversion_id
    )
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    answer: asset_pb2.AcquireReferencesResponse = await stub.AcquireReferences(
        request, timeout=REFERENCE_SECONDS
    )
    return list(answer.assets)


async def release(peers: Peers, holder: str, asset_ids: Sequence[UUID] = ()) -> None:
    """Releases the references of `holder` to these assets, or to all assets if none is named."""
    request = asset_pb2.ReleaseReferencesRequest(
        holder=holder, asset_ids=[str(each) for each in asset_ids]
    )
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    await stub.ReleaseReferences(request, timeout=REFERENCE_SECONDS)


async def purge(peers: Peers, asset_id: UUID) -> list[str]:
    """Purges a picture that no row will show, unless something uses it by now or it is gone
    already. Returns what uses it; nothing if it is gone."""
    request = asset_pb2.PurgeAssetRequest(asset_id=str(asset_id))
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    try:
        await stub.PurgeAsset(request, timeout=REFERENCE_SECONDS)
    except DomainError as refusal:
        if refusal.reason == Reason.ERROR_REASON_IN_USE:
            return _holders(refusal)
        if refusal.reason != Reason.ERROR_REASON_NOT_FOUND:
            raise
    return []


def _holders(refusal: DomainError) -> list[str]:
    """Returns the holders that an IN_USE names, each once."""
    named = [
        violation.description.removeprefix("used by ")
        for detail in refusal.details
        if isinstance(detail, error_details_pb2.PreconditionFailure)
        for violation in detail.violations
    ]
    return list(dict.fromkeys(named)) or ["something"]


async def delete(peers: Peers, asset_id: UUID) -> bool:
    """Puts a picture of the owner's into the trash. Returns False if something uses it, or it is
    gone."""
    request = asset_pb2.DeleteAssetRequest(asset_id=str(asset_id))
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    try:
        await stub.DeleteAsset(request, timeout=REFERENCE_SECONDS)
    except DomainError as refusal:
        if refusal.reason not in (Reason.ERROR_REASON_NOT_FOUND, Reason.ERROR_REASON_IN_USE):
            raise
        return False
    return True


async def undelete(peers: Peers, asset_id: UUID) -> None:
    """Takes a picture of the owner's out of the trash, unless it is purged."""
    request = asset_pb2.UndeleteAssetRequest(asset_id=str(asset_id))
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    try:
        await stub.UndeleteAsset(request, timeout=REFERENCE_SECONDS)
    except DomainError as refusal:
        if refusal.reason != Reason.ERROR_REASON_NOT_FOUND:
            raise


async def request_upload(
    peers: Peers, declaration: upload_pb2.UploadDeclaration, request_id: str
) -> upload_pb2.RequestUploadResponse:
    """Announces a picture as an asset of the current owner's."""
    request = upload_pb2.RequestUploadRequest(request_id=request_id, declaration=declaration)
    stub = peers.stub(upload_pb2_grpc.UploadServiceStub)
    answer: upload_pb2.RequestUploadResponse = await stub.RequestUpload(request)
    return answer


async def confirm_upload(peers: Peers, upload_id: str) -> str:
    """Has an uploaded picture verified, unless it was. Returns its asset's id."""
    request = upload_pb2.ConfirmUploadRequest(upload_id=upload_id)
    stub = peers.stub(upload_pb2_grpc.UploadServiceStub)
    answer: upload_pb2.ConfirmUploadResponse = await stub.ConfirmUpload(request)
    return answer.asset.id


async def add_urls(
    peers: Peers, messages: Iterable[conversion_pb2.Conversion | generation_pb2.Generation]
) -> None:
    """Sets image_url and thumbnail_url of the messages that have a result. A message whose result
    was deleted gets none, and no thumbnail_url while that isn't ready."""
    finished = [message for message in messages if message.result_asset_id]
    found = await peers.assets((message.result_asset_id for message in finished), urls=True)
    for message in finished:
        if asset := found.get(message.result_asset_id):
            message.image_url, message.thumbnail_url = asset.original_url, asset.thumbnail_url


async def wait_for_thumbnail(
    peers: Peers, message: conversion_pb2.Conversion | generation_pb2.Generation, seconds: float
) -> None:
    """Sets the thumbnail_url of a message that has an image_url, once it is ready. Gives up after
    `seconds`, or at the call's deadline."""
    if not message.image_url or message.thumbnail_url or seconds <= 0:
        return
    request = variant_pb2.GetVariantRequest(
        asset_id=message.result_asset_id, preset="thumb", wait=True, include_urls=True
    )
    with suppress(DomainError):  # the answer is complete without it
        answer: variant_pb2.GetVariantResponse = await peers.stub(
            variant_pb2_grpc.VariantServiceStub
        ).GetVariant(request, timeout=seconds)
        message.thumbnail_url = answer.variant.url
