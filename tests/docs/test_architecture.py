"""docs/architecture.md says what the code does."""

import re
from collections.abc import Collection, Mapping

from services.assets.comparisons import rules as comparison_rules
from services.assets.core import rules as assets
from services.assets.documents import rules as document_rules
from services.assets.upkeep import rules as run_rules
from services.conversions import rules as conversions
from services.pipeline import rules as pipeline
from services.techfiles import rules as techfiles
from tests.suite import ROOT

Machine = Mapping[str, Collection[str]]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MACHINES: Mapping[str, Machine] = {
    "asset": assets.ASSET_STATES,
    "variant": assets.VARIANT_STATES,
    "document": document_rules.STATES,
    "comparison": comparison_rules.STATES,
    **dict.fromkeys(("backfill", "import", "rendition"), assets.JOB_STATES),
    "storage run": run_rules.RUN_STATES,
    **dict.fromkeys(("conversion", "generation", "analysis"), conversions.JOB_STATES),
    "batch": conversions.BATCH_STATES,
    "product": pipeline.PRODUCT_STATES,
    "phase": pipeline.PHASE_STATES,
    "review": pipeline.REVIEW_STATES,
    "tech file": techfiles.FILE_STATES,
    "tech pack run": techfiles.RUN_STATES,
    "step of a run": techfiles.STEP_STATES,
    "export": techfiles.EXPORT_STATES,
    "release": techfiles.RELEASE_STATES,
}


def moves(machine: Machine) -> set[tuple[str, str]]:
    """Returns the pairs (from, to); staying in a state is no change."""
    return {(state, to) for state, targets in machine.items() for to in targets if to != state}


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def test_the_table_of_states_is_what_the_machines_allow() -> None:
    table = PAGE.partition("| noun | from → to |\n|---|---|\n")[2].partition("\n\n")[0]
    told: dict[str, set[tuple[str, str]]] = {}
    for nouns, steps in re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE):
        pairs = [step.split("→") for step in steps.split(";")]
        steps_told = {(a, b) for start, end in pairs for a in words(start) for b in words(end)}
        told |= dict.fromkeys(words(nouns), steps_told)
    assert told == {noun: moves(machine) for noun, machine in MACHINES.items()}


def test_every_file_of_assets_that_the_page_names_is_there() -> None:
    head = "| room of `services/assets` | what is in it |\n|---|---|\n"
    table = PAGE.partition(head)[2].partition("\n\n")[0]
    rooms = re.findall(r"^\| `(\w+)/` \| (.+?) \|$", table, re.MULTILINE)
    named = {(room, name) for room, text in rooms for name in re.findall(r"`(\w+)`", text)}
    modules = (ROOT / "services" / "assets").glob("*/*.py")
    there = {(path.parent.name, path.stem) for path in modules} - {("migrations", "env")}
    assert named and named <= there
    assert {room for room, _ in rooms} == {room for room, _ in there}
