"""Calls to the other services of the suite, on behalf of the current identity.

    peers = Peers(settings, "conversions")
    assets = peers.stub(asset_pb2_grpc.AssetServiceStub)
    answer = await assets.GetAsset(request)          # for auth.current(), within its deadline
    found = await peers.assets(asset_ids)            # the visible ones of these, by id
    await peers.download(asset_id, path)             # writes an asset's bytes to a file
    asset = await peers.upload(declaration, path, request_id=...)

A refusal by the callee is raised as a DomainError with the callee's reason, text and details, so
that it can be passed on unchanged. A job has no caller: `attempts.run` sets the identity of its
row's owner. Other code sets it first: `auth.enter(calls.owner_identity(row.owner))`.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2, upload_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.settings import Settings

DEFAULT_SECONDS = 60.0  # for a unary call of a job, which has no deadline of its own
TRANSFER_SECONDS = 300.0  # for the bytes of one file
_MARGIN_SECONDS = 0.1  # the end of a deadline, reserved for sending the answer
_CHUNK = 256 * 1024
_BATCH = 100  # assets per call
_FAR = 4102444800.0  # the year 2100: a job's identity doesn't expire
_log = structlog.get_logger("calls")

S = TypeVar("S")

_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)

# Codes of refusals that concern the caller; the others are problems between the two services.
_PASSED_ON = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INTERNAL,
    }
)


def set_deadline(seconds: float) -> None:
    """Sets the deadline of the current call to `seconds` from now."""
    _ends_at.set(time.monotonic() + seconds)


def time_left() -> float | None:
    """Returns the seconds until the current call's deadline, less 0.1 s for sending the answer;
    None in a job."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic() - _MARGIN_SECONDS)


def owner_identity(owner: str) -> auth.Identity:
    """Returns the identity of a job that works for `owner` (`user:ada`) after the owner's call."""
    role = owner.partition(":")[0]
    return auth.Identity(
        actor="atelier",
        owner=owner,
        role=role if role in ("user", "vendor", "anonymous") else "user",
        expires_at=_FAR,
    )


def service_identity(service: str) -> auth.Identity:
    """Returns the identity of a service that calls for no owner."""
    return auth.Identity(actor=service, owner=f"service:{service}", role="service", expires_at=_FAR)


class Peers:
    """The clients with which `service` calls the other services. Create it inside the event loop;
    channels connect at first use."""

    def __init__(self, settings: Settings, service: str) -> None:
        if settings.service_key_file is None:
            raise ValueError(
                f"{service} calls other services: set ATELIER_SERVICE_KEY_FILE to the key made for"
                " it (`atelier keys`)"
            )
        self._settings = settings
        self._credentials = auth.ServiceCredentials(
            service, auth.load_key(settings.service_key_file)
        )
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, stub_class: Callable[[object], S]) -> S:
        """Returns a generated stub whose methods take the request and optionally `timeout`
        (seconds), and raise DomainError."""
        callee = stub_class.__module__.split(".")[1]
        if callee not in self._channels:
            self._channels[callee] = channel(
                self._settings, getattr(self._settings, f"{callee}_address")
            )
        return stub_class(_Bound(self._channels[callee], self._credentials, callee))

    async def assets(
        self, asset_ids: Iterable[str], *, urls: bool = False
    ) -> dict[str, asset_pb2.Asset]:
        """Returns assets by id, without those that the caller can't see."""
        stub = self.stub(asset_pb2_grpc.AssetServiceStub)
        wanted = list(dict.fromkeys(asset_ids))
        found: dict[str, asset_pb2.Asset] = {}
        while wanted:
            request = asset_pb2.BatchGetAssetsRequest(asset_ids=wanted[:_BATCH], include_urls=urls)
            answer = await stub.BatchGetAssets(request)
            found |= {asset.id: asset for asset in answer.assets}
            wanted = [*answer.remaining_asset_ids, *wanted[_BATCH:]]
        return found

    async def download(
        self, asset_id: str, path: Path, variant: str = ""
    ) -> asset_pb2.DownloadHead:
        """Writes the bytes of the original, or of a variant, to `path`. Returns their type, size
        and checked digest.

        Raises NOT_FOUND, FAILED_PRECONDITION (not READY, or the stored bytes differ from the
        verified ones), UNAVAILABLE.
        """
        stub = self.stub(asset_pb2_grpc.AssetServiceStub)
        head = asset_pb2.DownloadHead()
        digest = hashlib.sha256()
        with path.open("wb") as file:
            request = asset_pb2.DownloadAssetRequest(asset_id=asset_id, variant=variant)
            async for answer in stub.DownloadAsset(request, timeout=TRANSFER_SECONDS):
                if answer.WhichOneof("part") == "head":
                    head = answer.head
                else:
                    digest.update(answer.chunk)
                    file.write(answer.chunk)
        if digest.hexdigest() != head.sha256:
            text = "its stored bytes are no longer those that were verified; upload it again"
            raise errors.precondition(text, subject=f"assets/{asset_id}")
        return head

    async def upload(
        self, declaration: upload_pb2.UploadDeclaration, path: Path, *, request_id: str
    ) -> asset_pb2.Asset:
        """Stores the file as a READY asset. Sets `size_bytes` and `sha256` of the declaration from
        the file.

        A repeat with the same request_id and bytes returns the same asset. Raises the refusals of
        UploadService.Upload.
        """
        content = path.read_bytes()
        whole = upload_pb2.UploadDeclaration()
        whole.CopyFrom(declaration)
        whole.size_bytes, whole.sha256 = len(content), hashlib.sha256(content).hexdigest()

        async def parts() -> AsyncIterator[upload_pb2.UploadRequest]:
            head = upload_pb2.UploadHead(request_id=request_id, declaration=whole)
            yield upload_pb2.UploadRequest(head=head)
            for start in range(0, len(content), _CHUNK):
                yield upload_pb2.UploadRequest(chunk=content[start : start + _CHUNK])

        answer = await self.stub(upload_pb2_grpc.UploadServiceStub).Upload(
            parts(), timeout=TRANSFER_SECONDS
        )
        return answer.asset

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class _Bound:
    """Replaces the channel of a stub, so that its methods add credentials and a deadline and raise
    our errors. Cheaper than interceptors, which run for every call."""

    def __init__(
        self, channel: grpc.aio.Channel, credentials: auth.ServiceCredentials, callee: str
    ) -> None:
        self._channel = channel
        self._credentials = credentials
        self._callee = callee

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._single(self._channel.unary_unary(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._single(self._channel.stream_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        method = self._channel.unary_stream(*arguments, **options)

        async def call(request: Any, timeout: float | None = None) -> AsyncIterator[Any]:
            try:
                async for answer in method(
                    request, timeout=_shorter(timeout, time_left()), metadata=self._metadata()
                ):
                    yield answer
            except grpc.aio.AioRpcError as error:
                raise _translated(error, self._callee) from None

        return call

    def _single(self, method: Any) -> Callable[..., Any]:
        async def call(request: Any, timeout: float | None = None) -> Any:
            seconds = _shorter(timeout, time_left()) or DEFAULT_SECONDS
            try:
                return await method(request, timeout=seconds, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                raise _translated(error, self._callee) from None

        return call

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self._credentials.metadata(auth.current())


def channel(settings: Settings, address: str) -> grpc.aio.Channel:
    """Returns a channel to a service. It connects at first use, and again when it must."""
    options = [
        # Balances over every address of a `dns:///` name.
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if settings.transport == "tls":
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(address, options=options)


def _shorter(one: float | None, other: float | None) -> float | None:
    given = [seconds for seconds in (one, other) if seconds is not None]
    return max(min(given), 0.001) if given else None


def _translated(error: grpc.aio.AioRpcError, callee: str) -> DomainError:
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED):
        return errors.unavailable(callee, callee)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"{callee} didn't answer in time; repeat the call"
        return DomainError(Reason.ERROR_REASON_DEADLINE, text, source=callee)
    status = _status(error)
    if code in _PASSED_ON and status is not None:
        info = error_details_pb2.ErrorInfo()
        others = []
        for detail in status.details:
            if not detail.Unpack(info):
                others.append(_unpacked(detail))
        name = f"ERROR_REASON_{info.reason}"
        if info.domain == errors.DOMAIN and name in Reason.DESCRIPTOR.values_by_name:
            known = [detail for detail in others if detail is not None]
            return DomainError(
                Reason.Value(name),
                status.message,
                dict(info.metadata),
                details=known,
                source=callee,
            )
    _log.error("call refused", callee=callee, code=str(code), text=error.details())
    return DomainError(
        Reason.ERROR_REASON_INTERNAL,
        f"{callee} refused this service ({code.name}); tell the operator",
    )


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _unpacked(detail: Any) -> Any:
    """Unpacks a google.rpc detail; returns None for a type that this suite doesn't send."""
    made = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2], None)
    if made is None:
        return None
    message = made()
    detail.Unpack(message)
    return message
