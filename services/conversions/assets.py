"""Calls to `assets`: checks that the caller may use pictures, reads their URLs, and acquires and
releases references, which keep pictures from being deleted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.conversions.v1 import conversion_pb2, generation_pb2

from services.conversions import rules
from shared.background import attempts
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

REFERENCE_SECONDS = 30.0  # a call about references takes effect within this time, or never
_STATES = {
    asset_pb2.ASSET_STATE_PENDING: "it is pending; confirm its upload, then repeat",
    asset_pb2.ASSET_STATE_REJECTED: "its upload was rejected; use another picture",
}
# Refusals that say nothing about the pictures, and the error class that is recorded for each.
_CLASSES: Mapping[int, str] = {
    Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE: rules.UNAVAILABLE,
    Reason.ERROR_REASON_SHUTTING_DOWN: rules.UNAVAILABLE,
    Reason.ERROR_REASON_OVERLOADED: rules.RATE_LIMITED,
    Reason.ERROR_REASON_TOO_MANY_CALLS: rules.RATE_LIMITED,
    Reason.ERROR_REASON_REQUEST_IN_PROGRESS: rules.UNAVAILABLE,
    Reason.ERROR_REASON_STORAGE_FULL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_INTERNAL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_DEADLINE: rules.TIMED_OUT,
}


@dataclass(frozen=True)
class Wanted:
    """A picture that a request names in `field`. `kind` 0: any kind is allowed."""

    field: str
    asset_id: str
    kind: int = asset_pb2.ASSET_KIND_UNSPECIFIED


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


def _kind(kind: int) -> str:
    return asset_pb2.AssetKind.Name(kind).removeprefix("ASSET_KIND_")


def error_class(refusal: DomainError) -> str:
    """Returns the error class that is recorded for a refusal of assets: a final one, unless the
    refusal says nothing about the pictures."""
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


async def purge(peers: Peers, asset_id: UUID) -> None:
    """Purges a picture that no row will show, unless something uses it by now or it is gone
    already."""
    request = asset_pb2.PurgeAssetRequest(asset_id=str(asset_id))
    stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
    try:
        await stub.PurgeAsset(request, timeout=REFERENCE_SECONDS)
    except DomainError as refusal:
        if refusal.reason not in (Reason.ERROR_REASON_NOT_FOUND, Reason.ERROR_REASON_IN_USE):
            raise


async def add_urls(
    peers: Peers, messages: Iterable[conversion_pb2.Conversion | generation_pb2.Generation]
) -> None:
    """Sets image_url and thumbnail_url of the messages that have a result. A message whose result
    was deleted gets none."""
    finished = [message for message in messages if message.result_asset_id]
    found = await peers.assets((message.result_asset_id for message in finished), urls=True)
    for message in finished:
        if asset := found.get(message.result_asset_id):
            message.image_url, message.thumbnail_url = asset.original_url, asset.thumbnail_url
