"""Turn protos/ into gen/: Python stubs, type stubs, and one descriptor set that every other tool
reads.

    python tools/stubs.py [--descriptors-only FILE] [--protos DIR]

The text of buf/validate/validate.proto is in no Python package, but its descriptor is (in
protovalidate), so it is handed to protoc as a descriptor set. `buf lint` and `buf breaking` then
read the descriptor set made here, which needs no registry and no network.
"""

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
WELL_KNOWN = ("descriptor", "duration", "field_mask", "timestamp")


def run(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc refused the contract: see the lines above")


def googleapis() -> Path:
    """The folder that holds google/rpc."""
    # google is a namespace package shared by protobuf and googleapis-common-protos.
    from google.rpc import status_pb2

    assert status_pb2.__file__
    return Path(status_pb2.__file__).parents[2]


def rpc_files() -> list[str]:
    """What refusals carry. No file of the contract imports them, but whoever reads a refusal must
    know them."""
    return [f"google/rpc/{name}.proto" for name in ("code", "error_details", "status")]


def import_paths() -> list[str]:
    """Where google/protobuf and google/rpc come from: the packages that ship them."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return [f"-I{well_known}", f"-I{googleapis()}"]


def validate_descriptors(directory: Path) -> Path:
    """A descriptor set with buf/validate/validate.proto and what it imports."""
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


def generate(protos: Path, target: Path, scratch: Path) -> None:
    """Stubs are built beside the old ones and swapped in whole, so that a failed run leaves the old
    ones."""
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
    # With -I set, protoc reads a file of the descriptor set only if no path has it; this one no
    # path has.
    run(
        f"--descriptor_set_in={descriptors}",
        f"--python_out={fresh}",
        f"--pyi_out={fresh}",
        "buf/validate/validate.proto",
    )
    describe(protos, fresh / "atelier.binpb", scratch)
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
