"""Turns protos/ into gen/: Python stubs, type stubs, and one descriptor set that every other tool
reads.

    python tools/stubs.py [--descriptors-only FILE] [--protos DIR]

No Python package has the text of buf/validate/validate.proto, but protovalidate has its descriptor,
so protoc gets it as a descriptor set. `buf lint` and `buf breaking` then read the descriptor set
made here, which needs no registry and no network.
"""

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor, descriptor_pb2, descriptor_pool
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
WELL_KNOWN = ("descriptor", "duration", "field_mask", "timestamp")


def run(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc refused the contract: see the lines above")


def googleapis() -> Path:
    """Returns the folder that holds google/rpc."""
    # google is a namespace package shared by protobuf and googleapis-common-protos.
    from google.rpc import status_pb2

    assert status_pb2.__file__
    return Path(status_pb2.__file__).parents[2]


def rpc_files() -> list[str]:
    """Returns the files of the messages that refusals carry. No file of the contract imports them,
    but a client needs them to read a refusal."""
    return [f"google/rpc/{name}.proto" for name in ("code", "error_details", "status")]


def import_paths() -> list[str]:
    """Returns the include options for google/protobuf and google/rpc, from the packages that ship
    them."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return [f"-I{well_known}", f"-I{googleapis()}"]


def validate_descriptors(directory: Path) -> Path:
    """Writes a descriptor set with buf/validate/validate.proto and its imports; returns its
    path."""
    plain = directory / "well_known.binpb"
    run(
        *import_paths(),
        f"--descriptor_set_out={plain}",
        *(f"google/protobuf/{n}.proto" for n in WELL_KNOWN),
    )
    combined = directory / "validate.binpb"
    descriptor = validate_pb._DESC.proto.to_binary()
    # FileDescriptorSet.file is field 1, length-delimited: append one more entry.
    length, prefix = len(descriptor), bytearray(b"\n")
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    combined.write_bytes(plain.read_bytes() + bytes(prefix) + descriptor)
    return combined


def contract_files(protos: Path) -> list[str]:
    return sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))


def describe(protos: Path, target: Path, scratch: Path) -> None:
    run(
        f"-I{protos}",
        *import_paths(),
        f"--descriptor_set_in={validate_descriptors(scratch)}",
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={target}",
        *contract_files(protos),
        *rpc_files(),
    )


def type_services(described: Path, target: Path) -> None:
    """Writes type stubs of the services for asyncio clients and servers. protoc writes type stubs
    of messages only."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes()).file
    for file in files:
        pool.Add(file)
    for file in files:
        if file.service and file.name.startswith("atelier/"):
            stub = target / file.name.replace(".proto", "_pb2_grpc.pyi")
            stub.write_text(services_stub(pool.FindFileByName(file.name)))


def services_stub(file: descriptor.FileDescriptor) -> str:
    services = file.services_by_name.values()
    messages = [
        message
        for service in services
        for method in service.methods
        for message in (method.input_type, method.output_type)
    ]
    modules = {"typing", "grpc.aio", *map(module_of, messages)}
    lines = [f"import {module}" for module in sorted(modules)]
    for service in services:
        lines += [f"class {service.name}Stub:"]
        lines += ["    def __init__(self, channel: object) -> None: ..."]
        lines += [f"    {method.name}: {call_type(method)}" for method in service.methods]
        lines += [f"class {service.name}Servicer:", *map(handler, service.methods)]
        arguments = f"servicer: {service.name}Servicer, server: object"
        lines += [f"def add_{service.name}Servicer_to_server({arguments}) -> None: ..."]
    return "\n".join([*lines, ""])


def call_type(method: descriptor.MethodDescriptor) -> str:
    asks = "Stream" if method.client_streaming else "Unary"
    answers = "Stream" if method.server_streaming else "Unary"
    types = f"{python_name(method.input_type)}, {python_name(method.output_type)}"
    return f"grpc.aio.{asks}{answers}MultiCallable[{types}]"


def handler(method: descriptor.MethodDescriptor) -> str:
    request, answer = python_name(method.input_type), python_name(method.output_type)
    if method.client_streaming:
        request = f"typing.AsyncIterator[{request}]"
    if method.server_streaming:
        answer = f"typing.AsyncIterator[{answer}]"
    context = "grpc.aio.ServicerContext[typing.Any, typing.Any]"
    define = "def" if method.server_streaming else "async def"  # a generator isn't a coroutine
    arguments = f"self, request: {request}, context: {context}"
    return f"    {define} {method.name}({arguments}) -> {answer}: ..."


def module_of(message: descriptor.Descriptor) -> str:
    return f"{message.file.name.removesuffix('.proto').replace('/', '.')}_pb2"


def python_name(message: descriptor.Descriptor) -> str:
    """Returns the name of a message's class, such as `atelier.assets.v1.asset_pb2.Asset`."""
    return f"{module_of(message)}.{message.name}"


def generate(protos: Path, target: Path, scratch: Path) -> None:
    """Builds the stubs beside the old ones and swaps them in whole, so that a failed run leaves the
    old ones."""
    fresh = Path(tempfile.mkdtemp(prefix="gen-", dir=target.parent))
    descriptors = validate_descriptors(scratch)
    common = (f"-I{protos}", *import_paths(), f"--descriptor_set_in={descriptors}")
    run(
        *common,
        f"--python_out={fresh}",
        f"--pyi_out={fresh}",
        f"--grpc_python_out={fresh}",
        *contract_files(protos),
    )
    # With -I, protoc reads a file from the descriptor set only if no path has it; this file is on
    # no path.
    run(
        f"--descriptor_set_in={descriptors}",
        f"--python_out={fresh}",
        f"--pyi_out={fresh}",
        "buf/validate/validate.proto",
    )
    describe(protos, fresh / "atelier.binpb", scratch)
    type_services(fresh / "atelier.binpb", fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.chmod(0o755)
    fresh.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protos", type=Path, default=ROOT / "protos")
    parser.add_argument(
        "--descriptors-only", type=Path, help="write only a descriptor set to this file"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.descriptors_only:
            describe(options.protos, options.descriptors_only.resolve(), Path(scratch))
        else:
            generate(options.protos.resolve(), ROOT / "gen", Path(scratch))


if __name__ == "__main__":
    main()
