"""`make protos` writes all that another compiler needs, and it holds what the server serves.

The tests unpack the archive into an empty folder; protoc and buf compile it there and know nothing
else.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.suite import ROOT

BUF = Path(sys.executable).with_name("buf")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "tools.protos", "--out", out], ROOT, PYTHONPATH=f"{ROOT}")
    return out


@pytest.fixture
def unpacked(dist: Path, tmp_path: Path) -> Path:
    zipfile.ZipFile(dist / "atelier-protos.zip").extractall(tmp_path)
    return tmp_path


def run(command: list[str | Path], directory: Path, **environment: str) -> None:
    """Runs a command with nothing in its environment that leads to this project."""
    known = {"PATH": os.environ["PATH"], "HOME": str(directory), **environment}
    done = subprocess.run(command, cwd=directory, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def protos_in(directory: Path, *roots: str) -> list[str]:
    return [
        path.relative_to(directory / root).as_posix()
        for root in roots
        for path in sorted((directory / root).rglob("*.proto"))
    ]


def described(path: Path) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Returns what the files of a descriptor set define, without what their texts looked like. The
    files that each compiler brings in its own version are left out."""
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    for file in files:
        file.ClearField("source_code_info")
    return {file.name: file for file in files if not file.name.startswith("google/protobuf/")}


def test_plain_protoc_compiles_the_archive_to_what_the_server_serves(unpacked: Path) -> None:
    files = protos_in(unpacked, "protos", "imports")
    protoc: list[str | Path] = [sys.executable, "-I", "-m", "grpc_tools.protoc"]
    out = "--descriptor_set_out=all.binpb"
    run([*protoc, "-Iprotos", "-Iimports", "--include_imports", out, *files], unpacked)
    made, served = described(unpacked / "all.binpb"), described(ROOT / "gen/atelier.binpb")
    assert set(made) == set(served) == set(files)
    for name, file in served.items():
        assert made[name] == file, name


def test_buf_compiles_the_archive_to_what_the_server_serves(unpacked: Path) -> None:
    run([BUF, "build", "-o", "all.binpb"], unpacked)
    made, served = described(unpacked / "all.binpb"), described(ROOT / "gen/atelier.binpb")
    assert set(made) == set(served)
    for name, file in served.items():
        made[name].DiscardUnknownFields()  # buf adds notes of its own to each file of an image
        assert made[name] == file, name


@pytest.mark.long
def test_buf_generates_stubs_from_the_archive_that_import(unpacked: Path) -> None:
    protoc = f"[{sys.executable}, -I, -m, grpc_tools.protoc]"
    plugin = f"{{protoc_builtin: python, protoc_path: {protoc}, out: out}}"
    (unpacked / "buf.gen.yaml").write_text(
        f"version: v2\nplugins: [{plugin}]\ninputs: [{{directory: .}}]\n"
    )

    run([BUF, "generate"], unpacked)
    modules = [
        name.removesuffix(".proto").replace("/", ".") + "_pb2"
        for name in protos_in(unpacked, "protos")
    ]

    for module in modules:
        assert (unpacked / "out" / f"{module.replace('.', '/')}.py").is_file()
    run([sys.executable, "-c", f"import {', '.join(modules)}"], unpacked / "out", PYTHONPATH=".")


def test_what_is_imported_keeps_its_packages_and_names_its_makers(unpacked: Path) -> None:
    served = described(ROOT / "gen/atelier.binpb")
    for name in protos_in(unpacked, "imports"):
        assert "atelier" not in served[name].options.go_package
        text = (unpacked / "imports" / name).read_text()
        assert "Apache License" in text and ("Google LLC" in text or "Buf Technologies" in text)
    validate = (unpacked / "imports/buf/validate/validate.proto").read_text()
    assert f"protovalidate {importlib.metadata.version('protovalidate')}." in validate
    assert "Version 2.0, January 2004" in (unpacked / "imports/LICENSE").read_text()


def test_the_descriptor_set_has_comments_and_what_errors_carry(dist: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString((dist / "atelier.binpb").read_bytes()).file
    named = {file.name: file for file in files}
    assert {f"google/rpc/{name}.proto" for name in ("code", "error_details", "status")} < set(named)
    assert {name for file in files for name in file.dependency} <= set(named)
    locations = named["atelier/assets/v1/asset.proto"].source_code_info.location
    assert any("INVALID_ARGUMENT" in location.leading_comments for location in locations)


def test_the_same_protos_make_the_same_archive(dist: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "tools.protos", "--out", tmp_path], ROOT, PYTHONPATH=f"{ROOT}")
    digests = {
        hashlib.sha256((folder / "atelier-protos.zip").read_bytes()).hexdigest()
        for folder in (dist, tmp_path)
    }
    assert len(digests) == 1
