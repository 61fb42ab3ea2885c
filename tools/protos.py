"""Writes what clients in other languages need to dist/.

atelier-protos.zip   the protos with all that they import, for protoc and buf, and a README.txt
atelier.binpb        all of it as one descriptor set, with comments
service_config.json  which calls a gRPC client may repeat, made from the contract

python tools/protos.py [--out DIR]
"""

import argparse
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from tools.proto_text import printed
from tools.stubs import ROOT, googleapis, rpc_files

VALIDATE = "buf/validate/validate.proto"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # constant: the same protos make the same archive, byte for byte
_VALIDATE_HEADER = """\
// buf/validate/validate.proto of Protovalidate (https://github.com/bufbuild/protovalidate),
// printed without its comments from the descriptor in the Python package protovalidate {version}.
//
// Copyright 2023-2026 Buf Technologies, Inc.
// Licensed under the Apache License, Version 2.0; LICENSE lies beside the folder `buf`.

"""
_BUF = """\
version: v2
modules:
  - path: protos
  - path: imports
"""
# Packages whose services others implement and the suite calls: the config, which is for clients of
# the suite, has nothing to say about them.
IMPLEMENTED_BY_OTHERS = frozenset({"atelier.models.v1"})
_RETRY = {
    "maxAttempts": 5,  # gRPC itself allows at most 5
    "initialBackoff": "0.5s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def archive_files(described: descriptor_pb2.FileDescriptorSet) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each file in the archive."""
    yield "README.txt", (ROOT / "tools/protos_readme.txt").read_bytes()
    yield "buf.yaml", _BUF.encode()
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        yield path.relative_to(ROOT).as_posix(), path.read_bytes()
    [validate] = [file for file in described.file if file.name == VALIDATE]
    header = _VALIDATE_HEADER.format(version=importlib.metadata.version("protovalidate"))
    yield f"imports/{VALIDATE}", (header + printed(validate, described)).encode()
    for name in rpc_files():
        yield f"imports/{name}", (googleapis() / name).read_bytes()
    licences = importlib.metadata.files("googleapis-common-protos") or []
    [licence] = [file for file in licences if file.name == "LICENSE"]
    yield "imports/LICENSE", Path(str(licence.locate())).read_bytes()


def write_archive(target: Path, described: descriptor_pb2.FileDescriptorSet) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in archive_files(described):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def service_config(described: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    """Returns the gRPC service config.

    A call is retried if it only reads, is declared idempotent, or has a request_id. A stream of
    requests is not: gRPC would have to keep all of it to send it again, and gives up beyond a few
    hundred KB. All calls wait for an unreachable server until their deadline.
    """
    takes_id = {
        f".{file.package}.{message.name}"
        for file in described.file
        for message in file.message_type
        if any(field.name == "request_id" for field in message.field)
    }
    again: list[dict[str, str]] = []
    once: list[dict[str, str]] = []
    for file in described.file:
        if file.package in IMPLEMENTED_BY_OTHERS:
            continue
        for service in file.service:
            for method in service.method:
                name = {"service": f"{file.package}.{service.name}", "method": method.name}
                level = method.options.idempotency_level
                repeatable = level != descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
                repeatable = repeatable or method.input_type in takes_id
                (again if repeatable and not method.client_streaming else once).append(name)
    return {
        "methodConfig": [
            {"name": again, "waitForReady": True, "retryPolicy": _RETRY},
            {"name": once, "waitForReady": True},
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    contract = ROOT / "gen" / "atelier.binpb"
    described = descriptor_pb2.FileDescriptorSet.FromString(contract.read_bytes())
    write_archive(out / "atelier-protos.zip", described)
    shutil.copyfile(contract, out / "atelier.binpb")
    config = json.dumps(service_config(described), indent=2)
    (out / "service_config.json").write_text(config + "\n")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:>9,}  {path}")


if __name__ == "__main__":
    main()
