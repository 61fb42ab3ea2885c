"""docs/names.md: every name that it gives for a name from elsewhere is in the contract."""

import re

import pytest
from google.protobuf import descriptor_pb2

from shared.settings import Settings
from tests.suite import ROOT

PAGE = ROOT / "docs" / "names.md"


def contract() -> set[str]:
    """Returns the names of all methods, messages, fields and values of the contract."""
    files = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "gen/atelier.binpb").read_bytes())
    names: set[str] = set()
    for file in files.file:
        package = file.package.removeprefix("atelier.")
        for service in file.service:
            names |= {f"{package}.{service.name}/{method.name}" for method in service.method}
        for message in file.message_type:
            names |= {message.name, *(f"{message.name}.{field.name}" for field in message.field)}
        for enum in file.enum_type:
            names |= {value.name for value in enum.value}
    return names


def rows() -> list[tuple[str, str]]:
    lines = (line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines())
    found = [(cells[0], cells[-1]) for cells in lines if len(cells) == 2]
    return [row for row in found if row[1] not in ("here", "---|---")]


def test_every_name_that_the_page_gives_is_in_the_contract() -> None:
    known = contract() | {f"ATELIER_{name.upper()}" for name in Settings.model_fields}
    given = [name for _, here in rows() for name in re.findall(r"`([^`]+)`", here)]
    ours = [name for name in given if re.match(r"[a-z]+\.v1\.|[A-Z]", name)]
    assert len(rows()) > 70 and len(ours) > 150
    assert [name for name in ours if name not in known] == []


@pytest.mark.parametrize("service", ["assets", "conversions", "pipeline", "techfiles"])
def test_the_page_leads_to_every_service(service: str) -> None:
    assert f"`{service}.v1." in PAGE.read_text()
