"""Server reflection: serves the contract with its comments to clients without its files.

`grpc_reflection` answers the requests. It is given a `Contract` here and not a descriptor pool,
which drops comments, finds no method by its name, and has no descriptor of reflection v1.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from shared.rpc.limits import Places
from shared.rpc.open_calls import reflecting

_CONTRACT = Path(__file__).resolve().parents[2] / "gen" / "atelier.binpb"
_OLD, _NEW = reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection"
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def handlers(
    served: Sequence[str], places: Places
) -> Iterable[tuple[str, dict[str, grpc.RpcMethodHandler]]]:
    """Returns the handlers of reflection for these services, under its old and its new name; both
    have the same messages on the wire."""
    servicer = reflection.aio.ReflectionServicer([*served, _HEALTH, _OLD, _NEW], pool=Contract())
    handler = grpc.stream_stream_rpc_method_handler(
        reflecting(servicer.ServerReflectionInfo, places),
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [(name, {"ServerReflectionInfo": handler}) for name in (_OLD, _NEW)]


class Contract:
    """Implements the methods of a descriptor pool that reflection uses. Reads the contract at the
    first request only: most processes never get one."""

    def FindFileByName(self, name: str) -> "_File":
        return self._file(self._pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> "_File":
        """Finds the file of a symbol, which may be a method. Raises KeyError if there is none of
        this name."""
        try:
            return self._file(self._pool.FindFileContainingSymbol(symbol))
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            found.FindMethodByName(method)
            return self._file(found.file)

    def FindMessageTypeByName(self, name: str) -> Descriptor:
        return self._pool.FindMessageTypeByName(name)

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:
        return self._pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:
        return list(self._pool.FindAllExtensions(message))

    def _file(self, found: FileDescriptor) -> "_File":
        return _File(found, self._texts)

    @functools.cached_property
    def _texts(self) -> dict[str, bytes]:
        """The contract's files as protoc wrote them, by name. The stubs' own descriptors lack the
        JSON names: a client that prints JSON by reflection would print other names than a client
        with stubs."""
        described = descriptor_pb2.FileDescriptorSet.FromString(_CONTRACT.read_bytes())
        files = [*described.file, *map(_described, (health_pb2, reflection_pb2)), _reflection_v1()]
        return {file.name: file.SerializeToString() for file in files}

    @functools.cached_property
    def _pool(self) -> descriptor_pool.DescriptorPool:
        pool = descriptor_pool.DescriptorPool()
        for text in self._texts.values():
            pool.AddSerializedFile(text)
        return pool


class _File:
    """A file's descriptor whose copies keep the comments."""

    def __init__(self, file: FileDescriptor, texts: dict[str, bytes]) -> None:
        self.name = file.name
        self._file = file
        self._texts = texts

    @property
    def dependencies(self) -> "list[_File]":
        return [_File(each, self._texts) for each in self._file.dependencies]

    def CopyToProto(self, proto: descriptor_pb2.FileDescriptorProto) -> None:
        proto.ParseFromString(self._texts[self.name])


def _described(module: Any) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


def _reflection_v1() -> descriptor_pb2.FileDescriptorProto:
    """Makes the descriptor of reflection v1, which no Python package has. It is v1alpha under
    another package name."""
    file = _described(reflection_pb2)
    file.name = "grpc/reflection/v1/reflection.proto"
    text = text_format.MessageToString(file).replace("reflection.v1alpha", "reflection.v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
