"""The guard around every method of every service.

Each method is wrapped once, at registration, so that calls don't run through an interceptor chain.
The guard handles, in this order: identity and policy, a place, deadline, validation, the handler,
errors, log and metrics.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

import grpc
import protovalidate
import structlog
from atelier.common.v1 import policy_pb2
from google.protobuf import descriptor, descriptor_pool
from google.protobuf.message import DecodeError, Message

from shared import telemetry
from shared.rpc import auth, calls, errors, limits, origin
from shared.rpc.errors import DomainError, Reason
from shared.rpc.limits import Limits, Places
from shared.rpc.origin import Context

R = TypeVar("R")  # a method's argument: a request or a stream of requests
A = TypeVar("A")

_SMALL_REQUEST_BYTES = 4096
_LARGE_REQUEST_BYTES = 64 * 1024
_IDLE_UPLOAD_SECONDS = 30.0  # between two messages of a request stream
_HEAD_START_SECONDS = 60.0
_SLOWEST = 10_000  # least average bytes per second of an upload after its head start
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 8 * 1024 * 1024  # a bound, because the caller may have no token
_log = structlog.get_logger("server")
# The call's checked request, or the first message of its stream.
_checked: ContextVar[Message | None] = ContextVar("checked_request", default=None)

Unary = Callable[[Message, Context], Awaitable[Message]]
Upload = Callable[[AsyncIterator[Message], Context], Awaitable[Message]]
Streaming = Callable[[Message, Context], AsyncGenerator[Message, None]]


class Undecodable:
    """Replaces a request that can't be decoded, so that the caller gets a declared answer:
    `problem` says what to do."""

    def __init__(self, error: Exception) -> None:
        # Only the text of the decoder's error distinguishes these cases.
        if isinstance(error, RecursionError) or "MaxDepth" in str(error):
            self.problem = (
                "the request is nested too deeply; free JSON may have 32 levels, flatten what has"
                " more"
            )
        elif "UTF-8" in str(error):
            self.problem = (
                "the request holds a text that isn't UTF-8; encode it so, or send it as bytes where"
                " bytes go"
            )
        else:
            self.problem = (
                "the request is not a message of the declared type; generate the stubs anew"
            )


Request = Message | Undecodable


class Method(Protocol):
    """A method of an asynchronous servicer as registered by the generated code."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Message]
    response_serializer: Callable[[Message], bytes]
    unary_unary: Unary
    unary_stream: Streaming
    stream_unary: Upload


def method_descriptor(path: str) -> descriptor.MethodDescriptor:
    """Returns the descriptor of a method such as '/atelier.assets.v1.AssetService/GetAsset'."""
    service, name = path[1:].split("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    assert isinstance(found, descriptor.MethodDescriptor)
    return found


def policy_of(path: str) -> policy_pb2.Policy:
    """Returns the policy from the contract. Raises RuntimeError, which stops start-up, for a method
    without one."""
    options = method_descriptor(path).GetOptions()
    extension: Any = policy_pb2.policy
    policy: policy_pb2.Policy = options.Extensions[extension]
    if not policy.roles:
        raise RuntimeError(
            f"{path} has no policy: add `option (atelier.common.v1.policy)` with roles to its rpc"
        )
    return policy


class Guard:
    """Wraps one method."""

    def __init__(self, path: str, verifier: auth.Verifier, limits: Limits) -> None:
        policy = policy_of(path)
        self._path = path
        self._method = path[1:]
        self._verifier = verifier
        self._limits = limits
        self._roles = {
            policy_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in policy.roles
        }
        self._services = set(policy.services)
        self._seconds = telemetry.SECONDS.labels(self._method)

    def wrap(self, registered: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        handler = cast(Method, registered)  # grpc's types describe a synchronous server
        decode = _forgiving(handler.request_deserializer)
        encode = handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            raise RuntimeError(f"{self._method} streams both ways, which no guard is made for")
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler.unary_stream), decode, encode
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(handler.stream_unary), decode, encode
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), decode, encode)

    def _identify(self, context: Context) -> auth.Identity:
        header = None
        for name, value in context.invocation_metadata() or ():
            if name == "authorization" and isinstance(value, str):
                header = value
        identity = self._verifier.identify(header)
        allowed = identity.role in self._roles
        if identity.service is not None and identity.role != "service":
            allowed = allowed and identity.service in self._services
        if not allowed:
            caller = (
                f"service {identity.service} for role {identity.role}"
                if identity.service
                else identity.role
            )
            raise DomainError(
                Reason.ERROR_REASON_ROLE_NOT_ALLOWED,
                f"{caller} may not call {self._method}; it is for {', '.join(sorted(self._roles))}",
                {"role": identity.role, "method": self._method},
            )
        auth.enter(identity)
        origin.enter(context)
        return identity

    def _unary(self, handler: Unary) -> Callable[[Request, Context], Awaitable[Message]]:
        limits = self._limits

        async def serve(request: Request, context: Context) -> Message:
            checked = check(request)
            left: float | None = context.time_remaining()
            seconds = limits.default_deadline if left is None else min(left, limits.max_deadline)
            calls.set_deadline(seconds)
            async with asyncio.timeout(seconds):
                return await handler(checked, context)

        return self._guarded(limits.calls, serve)

    def _upload(
        self, handler: Upload
    ) -> Callable[[AsyncIterator[Request], Context], Awaitable[Message]]:
        """Guards an upload. The server sets no deadline, since a large file on a slow line takes
        long; the caller's deadline applies."""

        async def serve(requests: AsyncIterator[Request], context: Context) -> Message:
            return await handler(_checked_stream(requests), context)

        return self._guarded(self._limits.uploads, serve, _linger)

    def _stream(self, handler: Streaming) -> Callable[[Request, Context], Awaitable[None]]:
        """Guards a stream of answers. It writes them itself: gRPC would leave the generator of a
        cancelled call to the garbage collector, with its place, its watcher and its open file."""

        async def serve(request: Request, context: Context) -> None:
            checked = check(request)
            async with contextlib.aclosing(handler(checked, context)) as answers:
                async for answer in answers:
                    try:
                        await context.write(answer)
                    except grpc.aio.InternalError:  # it waited for the client, which has gone
                        raise asyncio.CancelledError from None

        return self._guarded(self._limits.streams, serve)

    def _guarded(
        self,
        places: Places,
        serve: Callable[[R, Context], Awaitable[A]],
        linger: Callable[[R, float | None], Awaitable[None]] | None = None,
    ) -> Callable[[R, Context], Awaitable[A]]:
        """Wraps `serve` with all common steps. `linger` handles a caller that may still be sending
        when it is refused."""

        async def call(request: R, context: Context) -> A:
            started = time.perf_counter()
            identity, seat, code = None, None, "OK"
            try:
                identity = self._identify(context)
                patience = functools.partial(_patience, request, context)
                seat = await self._limits.seat(places, identity, patience)
                return await serve(request, context)
            except Exception as error:
                refusal = errors.from_exception(error)
                if refusal.text.endswith(errors.UNSTORABLE) and (
                    place := _place_of_nul(_checked.get())
                ):
                    refusal = errors.invalid(place, "may not contain NUL (U+0000); leave it out")
                code = errors.code_name(refusal)
                if linger:
                    await linger(request, context.time_remaining())
                await errors.send(context, refusal)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                if seat:
                    seat.leave()
                self._account(started, identity, code)

        return call

    def _account(self, started: float, identity: auth.Identity | None, code: str) -> None:
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed)
        telemetry.CALLS.labels(self._method, code).inc()
        _log.info(
            "call",
            method=self._method,
            code=code,
            ms=round(elapsed * 1000, 2),
            owner=identity.owner if identity else None,
            actor=identity.actor if identity else None,
            via=identity.service if identity else None,
        )


def _patience(request: object, context: Context) -> float:
    """Returns the seconds for which a call may wait for its place. A large request doesn't wait:
    thousands of them would fill the memory."""
    if isinstance(request, Message) and request.ByteSize() > _LARGE_REQUEST_BYTES:
        return 0.0
    left: float | None = context.time_remaining()
    return limits.QUEUE_SECONDS if left is None else min(limits.QUEUE_SECONDS, left / 2)


def check(request: Request) -> Message:
    """Enforces the constraints on the fields; returns the request. Raises INVALID_FIELD with up to
    20 violations of a small request, but only the first of a large one, since collecting thousands
    would occupy the server for long.
    """
    if isinstance(request, Undecodable):
        raise errors.invalid("", request.problem)
    try:
        violations = protovalidate.collect_violations(request, fail_fast=True)
        if violations and request.ByteSize() <= _SMALL_REQUEST_BYTES:
            violations = protovalidate.collect_violations(request)
    except protovalidate.EvaluationError:
        raise errors.invalid(
            "", "the request is too large to be checked; send fewer items"
        ) from None
    if violations:
        raise errors.invalid_fields(
            [(field_path(v.proto.field), v.proto.message) for v in violations[:20]]
        )
    if _checked.get() is None:
        _checked.set(request)
    return request


def field_path(path: protovalidate.FieldPathPb | None) -> str:
    """Formats a protovalidate path, such as 'items[2].name' or 'labels["a"]'."""
    parts: list[str] = []
    for element in path.elements if path else ():
        name = element.field_name
        subscript = element.subscript
        if subscript is not None:
            # A key may be as long as the message, but the answer's headers are limited.
            shown = (
                f'"{subscript.value[:60]}"'
                if subscript.field == "string_key"
                else str(subscript.value)
            )
            name += f"[{shown}]"
        parts.append(name)
    return ".".join(parts)


def _place_of_nul(request: Message | None) -> str:
    """Returns the field of the first text with a NUL, which Postgres can't store; '' without one.
    Runs only after the database refused one: checking every request would slow down each."""
    for field, value in request.ListFields() if request is not None else ():
        for subscript, each in _elements(field, value):
            if isinstance(each, str) and "\0" in each:
                return f"{field.name}{subscript}"
            if isinstance(each, Message) and (inner := _place_of_nul(each)):
                return f"{field.name}{subscript}.{inner}"
    return ""


def _elements(field: descriptor.FieldDescriptor, value: Any) -> Iterable[tuple[str, object]]:
    if not field.is_repeated:
        return [("", value)]
    if field.message_type and field.message_type.GetOptions().map_entry:
        keys = [(f"[{number}] (a key)", key) for number, key in enumerate(value)]
        return [*keys, *((f'["{key}"]', value[key]) for key in value)]
    return [(f"[{number}]", each) for number, each in enumerate(value)]


async def _checked_stream(requests: AsyncIterator[Request]) -> AsyncIterator[Message]:
    """Yields the checked messages of an upload. Raises DEADLINE if the caller pauses or is too
    slow: it would hold its place for ever."""
    clock, size = time.monotonic, 0
    ends = clock() + _HEAD_START_SECONDS
    while True:
        try:
            async with asyncio.timeout(min(_IDLE_UPLOAD_SECONDS, ends + size / _SLOWEST - clock())):
                request = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            limits = f"{_IDLE_UPLOAD_SECONDS:.0f} s or came slower than {_SLOWEST // 1000} kB/s"
            text = f"the upload paused for {limits}; send it again, or in parts"
            raise DomainError(Reason.ERROR_REASON_DEADLINE, text) from None
        checked = check(request)
        size += checked.ByteSize()
        yield checked


async def _linger(requests: AsyncIterator[Request], left: float | None) -> None:
    """Reads the rest of a refused upload for a moment. A caller that is refused while it writes may
    never see the reason: Python's asyncio client turns the failed write into INTERNAL. `left` is
    the seconds until its deadline.
    """
    size = 0
    with contextlib.suppress(Exception):
        async with asyncio.timeout(
            _LINGER_SECONDS if left is None else min(_LINGER_SECONDS, left / 2)
        ):
            async for request in requests:
                if isinstance(request, Undecodable):
                    return
                size += request.ByteSize()
                if size > _LINGER_BYTES:
                    return


def _forgiving(decode: Callable[[bytes], Message]) -> Callable[[bytes], Request]:
    """Wraps a decoder to return Undecodable instead of raising. gRPC would answer INTERNAL, but a
    caller's mistake is INVALID_ARGUMENT."""

    def decode_or_mark(data: bytes) -> Request:
        try:
            return decode(data)
        except (DecodeError, RecursionError, ValueError) as error:
            return Undecodable(error)

    return decode_or_mark
