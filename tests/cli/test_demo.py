import json
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvips

from tests.cli.conftest import Command
from tests.suite import ROOT

SAMPLES = ROOT / "examples" / "photos"


def small(source: Path, target: Path, **save: object) -> Path:
    """Writes a small copy of a shipped photograph, for speed."""
    pyvips.Image.thumbnail(str(source), 1200).write_to_file(str(target), **save)
    return target


@pytest.mark.long
def test_a_newcomer_holds_a_tech_pack(atelier_command: Command, tmp_path: Path) -> None:
    photos = [
        small(SAMPLES / f"{view}.jpg", tmp_path / f"{view}.jpg")
        for view in ("front", "back", "side")
    ]
    out = tmp_path / "out"
    answer = atelier_command.run(
        "demo",
        *map(str, photos),
        "--facts",
        str(SAMPLES / "facts.yaml"),
        "--out",
        str(out),
        timeout=240,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr

    summary = json.loads((out / "summary.json").read_text())
    assert [phase["state"] for phase in summary["phases"]] == ["COMPLETED"] * 4
    assert summary["collection"]["progress_percent"] == 100
    assert len(summary["variants"]) == 5 * 4
    assert {made["model"] for made in summary["conversions"] + summary["generations"]} == {"local"}
    assert (out / "tech-pack.pdf").read_bytes().startswith(b"%PDF-")
    with zipfile.ZipFile(out / "tech-pack.zip") as archive:
        assert archive.testzip() is None
    assert "What was made" in answer.stdout
    assert atelier_command.left_behind() == []


@pytest.mark.long
def test_photographs_that_cant_be_used_are_refused_before_anything_starts(
    atelier_command: Command, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    pyvips.Image.black(10_000, 6_000).write_to_file(str(wide), compression=9)
    large = tmp_path / "large.jpg"
    large.write_bytes((SAMPLES / "front.jpg").read_bytes() + b"\0" * 10 * 1024 * 1024)
    text = tmp_path / "page.jpg"
    text.write_text("<html></html>")

    for photo, named in (
        (wide, "50 megapixels"),
        (large, "10 MB"),
        (text, "not a picture"),
        (tmp_path / "no.jpg", "no such"),
    ):
        answer = atelier_command.run("demo", str(photo))
        assert answer.returncode == 2, answer.stdout + answer.stderr
        assert named in answer.stdout
        assert not atelier_command.state.exists()


@pytest.mark.long
def test_facts_with_a_misspelt_key_are_refused_by_name(
    atelier_command: Command, tmp_path: Path
) -> None:
    facts = tmp_path / "facts.yaml"
    facts.write_text("product: {nmae: Jacket}\n")
    answer = atelier_command.run("demo", "--facts", str(facts))
    assert answer.returncode == 2
    assert "nmae" in answer.stdout


@pytest.mark.faults
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "terminal closed"])
def test_a_demo_that_is_broken_off_leaves_no_process_behind(
    atelier_command: Command, tmp_path: Path, sent: signal.Signals
) -> None:
    process = atelier_command.start("demo", "--out", str(tmp_path / "out"))
    until(
        lambda: any("forkserver" in line for line in atelier_command.left_behind()),
        "a picture is being worked on",
    )
    os.killpg(process.pid, sent)

    process.communicate(timeout=60)
    assert process.returncode == 130
    until(lambda: not atelier_command.left_behind(), "everything has ended")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.1)
