"""The output of `atelier` about itself, in the 80 columns of a pipe or a small window."""

import pytest

from shared.settings import Settings
from tests.cli.conftest import Command


@pytest.fixture
def narrow(atelier_command: Command) -> Command:
    atelier_command.environment["COLUMNS"] = "80"
    return atelier_command


@pytest.mark.long
def test_every_setting_is_printed_by_its_whole_name(narrow: Command) -> None:
    printed = narrow.run("settings").stdout.splitlines()
    names = [line.split()[0] for line in printed if line.startswith("ATELIER_")]
    assert names == [f"ATELIER_{name.upper()}" for name in Settings.model_fields]


def test_every_setting_says_what_it_is_for() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]
    assert silent == [], "shared/settings.py: give each a description in one sentence with its unit"


@pytest.mark.long
def test_the_help_of_copy_says_how_a_store_is_named(narrow: Command) -> None:
    assert (
        "disk:/path or s3://bucket?endpoint=URL&region=NAME"
        in narrow.run("storage", "copy", "--help").stdout
    )
