"""Clients that have no file of the contract find their way by reflection: grpcurl, buf curl, and
ghz, which asks for a method by its name."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool

from tests import calls
from tests.suite import (
    ROOT,
    Client,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    built_services,
    running_suite,
)

BUF = str(Path(sys.executable).with_name("buf"))
GET_ASSET = "atelier.assets.v1.AssetService.GetAsset"
ALWAYS = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve(*built_services())
        yield suite


@pytest.fixture
def nobody(suite: Suite) -> Client:
    return suite.client(None)


async def files_of(
    client: Client, service: str, version: str = "v1", **question: str
) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Returns the files of one answer by name; none if the server knows no such thing."""
    answer = await calls.reflect(client.channel(service), version, **question)
    found = answer.file_descriptor_response.file_descriptor_proto
    files = map(descriptor_pb2.FileDescriptorProto.FromString, found)
    return {file.name: file for file in files}


def comments(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    return [location.leading_comments for location in file.source_code_info.location]


@pytest.mark.long
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("service", built_services())
async def test_every_service_that_is_listed_is_described_with_its_methods(
    nobody: Client, service: str, version: str
) -> None:
    listed = await calls.reflected_services(nobody.channel(service), version)
    assert set(listed) > ALWAYS and any(f"atelier.{service}." in name for name in listed)
    for name in listed:
        files = await files_of(nobody, service, version, file_containing_symbol=name)
        # A pool can be made only of files that lack nothing.
        database = descriptor_database.DescriptorDatabase()
        for file in files.values():
            database.Add(file)
        pool = descriptor_pool.DescriptorPool(database)
        for method in pool.FindServiceByName(name).methods:
            by_method = await files_of(
                nobody, service, version, file_containing_symbol=method.full_name
            )
            assert by_method == files


async def test_descriptions_have_comments_and_json_names(nobody: Client) -> None:
    files = await files_of(nobody, "assets", file_containing_symbol=GET_ASSET)
    assert any("NOT_FOUND" in text for text in comments(files["atelier/assets/v1/asset.proto"]))
    [asset] = [m for m in files["atelier/assets/v1/asset.proto"].message_type if m.name == "Asset"]
    assert {"fileName"} <= {field.json_name for field in asset.field}


async def test_what_refusals_carry_is_described_with_its_comments(nobody: Client) -> None:
    for name in ("google.rpc.Status", "google.rpc.ErrorInfo", "google.rpc.RetryInfo"):
        files = await files_of(nobody, "pipeline", file_containing_symbol=name)
        assert any(comments(file) for file in files.values()), name


@pytest.mark.parametrize(
    "symbol",
    ["", "nothing", "atelier.assets.v1.AssetService.Nothing", "atelier.Nothing.GetAsset", ".."],
)
async def test_what_is_not_there_is_not_found(nobody: Client, symbol: str) -> None:
    answer = await calls.reflect(nobody.channel("assets"), "v1", file_containing_symbol=symbol)
    assert answer.error_response.error_code == 5  # NOT_FOUND


async def test_files_and_extensions_are_found(nobody: Client) -> None:
    policy = "atelier/common/v1/policy.proto"
    assert policy in await files_of(nobody, "assets", file_by_filename=policy)
    options = "google.protobuf.MethodOptions"
    answer = await calls.reflect(
        nobody.channel("assets"), "v1", all_extension_numbers_of_type=options
    )
    assert 50501 in answer.all_extension_numbers_response.extension_number


async def run(*command: str) -> str:
    """Runs a program of others that knows nothing but the server's address. Returns what it
    prints."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd="/", env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("reflect", ["grpc-v1", "grpc-v1alpha"])
async def test_buf_curl_calls_with_nothing_but_the_address(suite: Suite, reflect: str) -> None:
    url = f"http://{suite.addresses['assets']}/atelier.assets.v1.AssetService/ListAssets"
    token = suite.keys.token("ada")
    curl = [
        BUF,
        "curl",
        "--protocol=grpc",
        "--http2-prior-knowledge",
        "--reflect-protocol",
        reflect,
    ]

    assert (await run(*curl, "-H", f"authorization: Bearer {token}", "-d", "{}", url)).strip()


@pytest.mark.needs_go
async def test_grpcurl_lists_describes_and_calls(suite: Suite) -> None:
    places = [str(ROOT / ".tools/bin"), os.environ["PATH"]]
    program = shutil.which("grpcurl", path=os.pathsep.join(places))
    assert program, "grpcurl is not installed: make .tools/bin/grpcurl"
    address = suite.addresses["assets"]

    listed = await run(program, "-plaintext", address, "list")
    assert ALWAYS | {"atelier.assets.v1.AssetService"} <= set(listed.split())

    described = await run(program, "-plaintext", address, "describe", GET_ASSET)
    assert "rpc GetAsset (" in described and "NOT_FOUND" in described
    assert "idempotency_level = NO_SIDE_EFFECTS" in described

    every = await run(program, "-plaintext", address, "describe")
    assert "rpc ServerReflectionInfo (" in every

    header = f"authorization: Bearer {suite.keys.token('ada')}"
    called = await run(
        program, "-plaintext", "-H", header, address, "atelier.assets.v1.AssetService/ListAssets"
    )
    assert called.strip() == "{}"
