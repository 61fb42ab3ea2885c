"""Serves the contract over Connect, gRPC-Web and JSON: an ASGI application that passes messages on
to the services as bytes.

Only a JSON body is read here, to become the message's bytes; unknown fields are refused. Token,
deadline and request id go to the service, its refusals come back with code, text and details.
Everything of `connectrpc`, which is young, stands in this file.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from protobuf.wkt import Any as AnyMessage

from shared.rpc import errors
from web import contract
from web.contract import Method
from web.peers import Channels

_MESSAGE_BYTES = 4 * 1024 * 1024
# What goes to the services of a call's headers; all else is between the client and `web`.
_PASSED_ON = ("authorization", "x-request-id", "traceparent", "tracestate", "user-agent")
_STATUS = "grpc-status-details-bin"
_STOPPING = "the web process is stopping; call again, a watch with its last cursor"

Metadata = list[tuple[str, str]]
Endpoints = Mapping[str, Any]  # by path; connectrpc names the union of its classes in private
Context = RequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Reply:
    """The bytes of an answer, and the class that reads them if it must become JSON."""

    data: bytes
    message: type[Message]


class _Proto:
    """Passes bytes on."""

    def name(self) -> str:
        return "proto"

    def encode(self, message: _Reply) -> bytes:
        return message.data

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> bytes:
        return bytes(data)


class _Json:
    """Turns the JSON form of a message into its bytes, and back."""

    def name(self) -> str:
        return "json"

    def encode(self, message: _Reply) -> bytes:
        made = message.message.FromString(message.data)
        return json_format.MessageToJson(
            made, indent=None, descriptor_pool=contract.pool()
        ).encode()

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> bytes:
        made = message_class()
        text = bytes(data).strip() or b"{}"
        try:
            if not text.startswith(b"{"):  # the parser takes [] for a message without fields
                raise ValueError("it has to be an object: {...}")
            json_format.Parse(text, made, descriptor_pool=contract.pool())
        except (json_format.ParseError, DecodeError, ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:500]
            problem = f"the body isn't the JSON of {message_class.DESCRIPTOR.full_name}: {said}"
            raise refusal(errors.answer(errors.invalid("", problem))) from None
        return made.SerializeToString()


def refusal(status: status_pb2.Status) -> ConnectError:
    """Returns the error of a `google.rpc.Status`."""
    details = [
        ErrorDetail(AnyMessage(type_url=each.type_url, value=each.value)) for each in status.details
    ]
    return ConnectError(_CODES[status.code], status.message, details)


# By the number of a gRPC status.
_CODES: Mapping[int, Code] = {
    code.value[0]: Code.CANCELED if code.name == "CANCELLED" else Code(code.name.lower())
    for code in grpc.StatusCode
    if code.name != "OK"
}


class Bridge:
    """The application and the streams that it serves."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._open: set[grpc.aio.Call] = set()
        self._stopping = False
        self.application = _Application(self._endpoints())

    def stop(self) -> None:
        """Ends open streams with UNAVAILABLE, and refuses new ones. A server that only waits for
        them would wait for ever."""
        self._stopping = True
        for call in self._open:
            call.cancel()

    def _endpoints(self) -> Endpoints:
        return {method.path: self._endpoint(method) for method in contract.methods()}

    def _endpoint(self, method: Method) -> Endpoint[Any, Any]:
        info = _info(method)
        if method.descriptor.server_streaming:
            return Endpoint.server_stream(info, self._streaming(method))
        if method.descriptor.client_streaming:
            return Endpoint.client_stream(info, self._uploading(method))
        return Endpoint.unary(info, self._unary(method))

    def _unary(self, method: Method) -> Callable[[bytes, Context], Any]:
        async def serve(request: bytes, context: Context) -> _Reply:
            call: Any = self._channels.unary(method.callee).unary_unary(method.full_path)
            started = call(request, timeout=_seconds(context), metadata=_metadata(context))
            return await self._answer(started, method, context)

        return serve

    def _uploading(self, method: Method) -> Callable[[AsyncIterator[bytes], Context], Any]:
        async def serve(requests: AsyncIterator[bytes], context: Context) -> _Reply:
            call: Any = self._channels.stream(method.callee).stream_unary(method.full_path)
            started = call(requests, timeout=_seconds(context), metadata=_metadata(context))
            return await self._answer(started, method, context)

        return serve

    async def _answer(self, call: Any, method: Method, context: Context) -> _Reply:
        try:
            data: bytes = await call
        except grpc.aio.AioRpcError as error:
            raise _refused(error, context) from None
        return _Reply(data, method.response)

    def _streaming(self, method: Method) -> Callable[[bytes, Context], AsyncIterator[_Reply]]:
        async def serve(request: bytes, context: Context) -> AsyncIterator[_Reply]:
            if self._stopping:
                raise ConnectError(Code.UNAVAILABLE, _STOPPING)
            start: Any = self._channels.stream(method.callee).unary_stream(method.full_path)
            call = start(request, timeout=_seconds(context), metadata=_metadata(context))
            self._open.add(call)
            try:
                async for data in call:
                    yield _Reply(data, method.response)
            except grpc.aio.AioRpcError as error:
                raise _refused(error, context) from None
            except asyncio.CancelledError:
                if self._stopping:
                    raise ConnectError(Code.UNAVAILABLE, _STOPPING) from None
                raise
            finally:
                self._open.discard(call)
                call.cancel()

        return serve


class _Application(ConnectASGIApplication[Endpoints]):
    def __init__(self, endpoints: Endpoints) -> None:
        super().__init__(
            service=endpoints,
            endpoints=lambda made: made,
            read_max_bytes=_MESSAGE_BYTES,
            codecs=[_Proto(), _Json()],
        )

    @property
    def path(self) -> str:
        return ""


def _info(method: Method) -> MethodInfo[Any, Any]:
    descriptor = method.descriptor
    streams = StreamType.UNARY
    if descriptor.server_streaming:
        streams = StreamType.SERVER_STREAM
    elif descriptor.client_streaming:
        streams = StreamType.CLIENT_STREAM
    reads = IdempotencyLevel.NO_SIDE_EFFECTS if method.reads else IdempotencyLevel.UNKNOWN
    return MethodInfo(
        name=descriptor.name,
        service_name=descriptor.containing_service.full_name,
        input=method.request,
        output=method.response,
        idempotency_level=reads,
        stream_type=streams,
    )


def _seconds(context: Context) -> float | None:
    left = context.timeout_ms
    return None if left is None else max(left / 1000, 0.001)


def _metadata(context: Context) -> Metadata:
    headers = context.request_headers
    passed = [(name, headers[name]) for name in _PASSED_ON if name in headers]
    address = (context.client_address or "").rpartition(":")[0]
    before = headers.get("x-forwarded-for", "")
    if address:
        passed.append(("x-forwarded-for", f"{before}, {address}" if before else address))
    return passed


def _refused(error: grpc.aio.AioRpcError, context: Context) -> ConnectError:
    """Returns a service's refusal, with its reason in a header for clients that read no details."""
    status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    for name, value in error.trailing_metadata() or ():
        if name == _STATUS and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                status = status_pb2.Status.FromString(value)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            context.response_headers["atelier-reason"] = info.reason
    return refusal(status)
