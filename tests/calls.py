"""Calls any method by its descriptor, and reads a refusal with its google.rpc details."""

import importlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import psycopg
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.suite import ROOT, Client, Suite

D = TypeVar("D", bound=Message)


@dataclass(frozen=True)
class Refusal:
    """A refused call. `reason`, `domain` and `metadata` are those of ErrorInfo, or '', '' and {}
    without one."""

    code: grpc.StatusCode
    text: str
    reason: str
    domain: str
    metadata: dict[str, str]
    status: status_pb2.Status
    trailers: dict[str, Any]

    def detail(self, kind: type[D]) -> D:
        """Returns the only detail of this type."""
        found = [
            packed
            for packed in self.status.details
            if packed.TypeName() == kind.DESCRIPTOR.full_name
        ]
        assert len(found) == 1, f"{self.code} {self.text!r} has {len(found)} {kind.DESCRIPTOR.name}"
        made = kind()
        found[0].Unpack(made)
        return made

    @property
    def fields(self) -> list[str]:
        """Returns the paths of the fields that BadRequest names."""
        return [
            violation.field
            for violation in self.detail(error_details_pb2.BadRequest).field_violations
        ]


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info = error_details_pb2.ErrorInfo()
    for packed in status.details:
        packed.Unpack(info)
    return Refusal(
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        dict(info.metadata),
        status,
        trailers,
    )


async def refused(
    call: Awaitable[Any] | AsyncIterator[Any], code: grpc.StatusCode, *words: str
) -> Refusal:
    """Returns the refusal that ends a unary call or a stream: with this code, and a text that holds
    these words. A served call fails the test."""
    try:
        if hasattr(call, "__aiter__"):
            answered: Any = [item async for item in call]
        else:
            answered = await call
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        assert refusal.code is code, refusal
        for word in words:
            assert word in refusal.text, refusal.text
        return refusal
    raise AssertionError(f"served, not refused: {answered}")


async def reflect(channel: grpc.aio.Channel, version: str, **question: Any) -> Any:
    """Returns one answer of server reflection; `version` is v1 or v1alpha."""
    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    [answer] = [
        a
        async for a in call(
            aiter_of([reflection_pb2.ServerReflectionRequest(**question)]), timeout=5
        )
    ]
    return answer


async def reflected_services(channel: grpc.aio.Channel, version: str) -> list[str]:
    answer = await reflect(channel, version, list_services="")
    return [service.name for service in answer.list_services_response.service]


@contextmanager
def holding(suite: Suite, statement: str, parameters: Any) -> Iterator[None]:
    """Runs a statement and keeps its transaction, and so its locks, open within the block."""
    with psycopg.connect(suite.cluster.url(suite.database)) as conn:
        conn.execute(statement, parameters)
        yield
        conn.rollback()


def methods_of(services: Iterable[str]) -> Iterator[MethodDescriptor]:
    """Yields every method in the contracts of these services."""
    for service in services:
        for path in sorted((ROOT / "gen/atelier" / service / "v1").glob("*_pb2.py")):
            module = importlib.import_module(f"atelier.{service}.v1.{path.stem}")
            for described in module.DESCRIPTOR.services_by_name.values():
                yield from described.methods


def name_of(method: MethodDescriptor) -> str:
    """Returns a name such as 'atelier.assets.v1.AssetService.GetAsset'."""
    return str(method.full_name)


OF_EACH = ("webhooks", "owners")  # packages that each service serves for itself


def served_by(services: Iterable[str]) -> dict[str, MethodDescriptor]:
    """Returns every method that these services serve, by name. Methods that each service serves for
    itself are prefixed with the service: 'assets/atelier.webhooks.v1.WebhookService.GetEndpoint'.
    """
    served = {name_of(method): method for method in methods_of(services)}
    for service in services:
        served |= {f"{service}/{name_of(method)}": method for method in methods_of(OF_EACH)}
    return served


def service_of(name: str) -> str:
    """Returns the service that serves a method of `served_by`."""
    service, _, method = name.rpartition("/")
    return service or method.split(".")[1]


def request_class(method: MethodDescriptor) -> type[Message]:
    return GetMessageClass(method.input_type)


def _callable(
    client: Client, method: MethodDescriptor, encode: Any, service: str | None = None
) -> Any:
    channel = client.channel(service or service_of(name_of(method)))
    opener = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    path = f"/{method.containing_service.full_name}/{method.name}"
    return opener(
        path,
        request_serializer=encode,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )


def _complete(answer: Any) -> bool:
    """Returns whether this item of a watch, or a message in it, is the bookmark that says the
    current state is complete."""
    inner = [
        answer,
        *(
            value
            for field, value in answer.ListFields()
            if field.message_type and not field.is_repeated
        ),
    ]
    return any(
        "bookmark" in item.DESCRIPTOR.fields_by_name and item.bookmark.ready for item in inner
    )


async def invoke(
    client: Client,
    method: MethodDescriptor,
    requests: Sequence[Message],
    service: str | None = None,
) -> list[Message]:
    """Calls a method and returns all answers; of a watch, those up to the bookmark that the current
    state is complete. Raises AioRpcError.

    `service` is the service to call, if several serve the method.
    """
    call = _callable(client, method, lambda message: message.SerializeToString(), service)
    asked: Any = aiter_of(requests) if method.client_streaming else requests[0]
    if not method.server_streaming:
        return [await call(asked, timeout=30)]
    answers: list[Message] = []
    streaming = call(asked, timeout=30)
    async for answer in streaming:
        answers.append(answer)
        if _complete(answer):
            streaming.cancel()
            break
    return answers


async def aiter_of(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def send_bytes(
    client: Client, method: MethodDescriptor, data: bytes, service: str | None = None
) -> grpc.StatusCode:
    """Returns the status code that a unary method answers to these bytes as its request."""
    try:
        await _callable(client, method, bytes, service)(data, timeout=30)
    except grpc.aio.AioRpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
