"""The methods that `web` passes on, as the contract in gen/ has them, and which service answers
each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from shared.settings import SERVICES

_CONTRACT = Path(__file__).resolve().parents[1] / "gen" / "atelier.binpb"
# Every service answers these, each with its own rows.
_EVERYWHERE = ("atelier.owners.v1", "atelier.webhooks.v1")


@dataclass(frozen=True, slots=True)
class Method:
    """A method under one path. `callee` is the service that answers it."""

    path: str
    callee: str
    full_path: str  # the path of gRPC, `/package.Service/Method`
    descriptor: MethodDescriptor
    request: type[Message]
    response: type[Message]

    @property
    def reads(self) -> bool:
        """Whether the call changes nothing, so that it may be sent by GET."""
        level = self.descriptor.GetOptions().idempotency_level
        return bool(level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS)


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """Returns the contract, and all that it imports."""
    made = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_CONTRACT.read_bytes()).file:
        made.Add(file)
    return made


@cache
def methods() -> tuple[Method, ...]:
    """Returns all methods. Those of the services that every service answers have the path
    `/<service>/<package.Service>/<method>`; the others have that of gRPC."""
    return tuple(_methods())


def _methods() -> Iterator[Method]:
    files = descriptor_pb2.FileDescriptorSet.FromString(_CONTRACT.read_bytes()).file
    for file in files:
        package = file.package.split(".")
        callees: tuple[str, ...]
        if file.package in _EVERYWHERE:
            callees, prefix = SERVICES, "/{}"
        elif package[0] == "atelier" and len(package) > 1 and package[1] in SERVICES:
            callees, prefix = (package[1],), ""
        else:
            continue
        for service in file.service:
            found = pool().FindServiceByName(f"{file.package}.{service.name}")
            for callee in callees:
                for descriptor in found.methods:
                    yield _method(callee, prefix.format(callee), descriptor)


def _method(callee: str, prefix: str, descriptor: MethodDescriptor) -> Method:
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    return Method(
        prefix + path,
        callee,
        path,
        descriptor,
        message_factory.GetMessageClass(descriptor.input_type),
        message_factory.GetMessageClass(descriptor.output_type),
    )
