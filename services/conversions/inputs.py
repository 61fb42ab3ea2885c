"""What is asked of `assets`: may the caller use these pictures, where are they, and that they
stay."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.conversions import rules
from shared.background import attempts
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

HOLD_SECONDS = 30.0  # in which a hold comes to pass or never does
_STATES = {
    asset_pb2.ASSET_STATE_PENDING: "it is pending; confirm its upload, then repeat",
    asset_pb2.ASSET_STATE_REJECTED: "its upload was rejected; use another picture",
}
# Refusals that say nothing about the pictures, and the class that they are recorded with.
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
    """A picture that a request names in `field`. `kind` 0: any kind will do."""

    field: str
    asset_id: str
    kind: int = asset_pb2.ASSET_KIND_UNSPECIFIED


async def check(peers: Peers, wanted: Sequence[Wanted]) -> list[asset_pb2.Asset]:
    """The assets in the order asked for, each READY, a picture, of its kind, and readable by the
    caller.

    Raises NOT_FOUND, FAILED_PRECONDITION or INVALID_ARGUMENT for the first that isn't, with
    metadata `field`.
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
    """What a refusal of assets is recorded as: a final one, unless it says nothing about the
    pictures."""
    return _CLASSES.get(refusal.reason, rules.BAD_INPUT)


def verdict(refusal: DomainError) -> attempts.Waits | attempts.JobFailed:
    """How a try ends that met this refusal of assets."""
    found = attempts.verdict(refusal)
    found.error_class = error_class(refusal)
    return found


async def hold(
    peers: Peers, holder: str, asset_ids: Sequence[Any], *, conversion_id: str = ""
) -> list[asset_pb2.Asset]:
    """Notes that `holder` uses these READY assets, so that they aren't deleted. Returns them in
    order.

    `conversion_id`: they are inputs of that conversion, which goes into their history.

    A repeat changes nothing, so that there is no request id, whose stored answer would hide that
    they were given back meanwhile. Raises NOT_FOUND, FAILED_PRECONDITION (not READY) or
    UNAVAILABLE.
    """
    if not asset_ids:
        return []
    request = asset_pb2.AcquireReferencesRequest(
        holder=holder, asset_ids=[str(each) for each in asset_ids], conversion_id=conversion_id
    )
    answer = await peers.stub(asset_pb2_grpc.AssetServiceStub).AcquireReferences(
        request, timeout=HOLD_SECONDS
    )
    return list(answer.assets)


async def release(peers: Peers, holder: str, asset_ids: Sequence[Any] = ()) -> None:
    """Gives back what `holder` uses, or these of it."""
    request = asset_pb2.ReleaseReferencesRequest(
        holder=holder, asset_ids=[str(each) for each in asset_ids]
    )
    await peers.stub(asset_pb2_grpc.AssetServiceStub).ReleaseReferences(
        request, timeout=HOLD_SECONDS
    )


async def remove(peers: Peers, asset_id: str) -> None:
    """Removes a picture that was made for nothing, unless somebody uses it by now or removed it
    before."""
    try:
        request = asset_pb2.PurgeAssetRequest(asset_id=asset_id)
        await peers.stub(asset_pb2_grpc.AssetServiceStub).PurgeAsset(request, timeout=HOLD_SECONDS)
    except DomainError as refusal:
        if refusal.reason not in (Reason.ERROR_REASON_NOT_FOUND, Reason.ERROR_REASON_IN_USE):
            raise


async def add_urls(peers: Peers, messages: Iterable[Any]) -> None:
    """Fills in image_url and thumbnail_url of the messages that have a result. One that is gone
    stays without."""
    finished = [message for message in messages if message.result_asset_id]
    found = await peers.assets((message.result_asset_id for message in finished), urls=True)
    for message in finished:
        if asset := found.get(message.result_asset_id):
            message.image_url, message.thumbnail_url = asset.original_url, asset.thumbnail_url
