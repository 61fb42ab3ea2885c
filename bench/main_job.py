"""B12: `make demo` on a warm machine, compared with its bare work: pictures, model and document,
one after the other."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figure import CannotRun, Figure, Report, Rounds
from cli.suite import ROOT

if TYPE_CHECKING:
    from shared.formats.facts import Facts

_ROUNDS = 2
_PHOTOS = ROOT / "examples" / "photos"
_VIEWS = ("front", "back", "side")


def demo(report: Report) -> list[Figure]:
    """Compares the seconds of the demo's stages, from its own summary, without starting the
    suite."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as folder:
        directory = Path(folder)
        directory.chmod(0o755)  # Postgres runs as another account when this is root
        _demo(directory, report)  # warms up: stubs, database, file cache
        pairs = []
        for number in range(_ROUNDS):
            report(f"round {number + 1} of {_ROUNDS}")
            pairs.append((_demo(directory, report), _alone(directory)))
    middle = sorted(ours / alone for ours, alone in pairs)
    ours, alone = Rounds(pairs).pairs[-1]
    note = f"ratios {', '.join(f'{ratio:.2f}' for ratio in middle)}"
    return [
        Figure(
            "B12",
            "the demo, three 12 MP photographs",
            "s",
            ours,
            1.5,
            alone,
            middle[len(middle) // 2],
            note=note,
        )
    ]


def _demo(directory: Path, report: Report) -> float:
    report("demo")
    out = directory / "out"
    command = [
        str(ROOT / "atelier"),
        "demo",
        "--state",
        str(directory / "state"),
        "--out",
        str(out),
    ]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise CannotRun(answer.stdout[-300:] + answer.stderr[-300:])
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    return float(sum(seconds.values()))


def _alone(directory: Path) -> float:
    """Runs the same functions on the same files in one fresh process without services; returns
    seconds."""
    command = [sys.executable, "-m", "bench.main_job", str(directory)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if answer.returncode:
        raise CannotRun(answer.stderr[-300:])
    return float(answer.stdout)


def _work(directory: Path) -> Iterator[object]:
    """Does what the demo asks for, piece by piece."""
    from services.conversions.local.analyse import Analysis, analyse
    from services.conversions.local.assess import assess
    from services.conversions.local.closeup import close_up
    from services.conversions.local.generate import generate
    from services.conversions.local.sketch import line_drawing
    from services.conversions.local.tryon import try_on
    from shared.formats.facts import load_facts
    from shared.imaging import DEFAULT_PRESETS, inspect, make_variants

    facts = load_facts((_PHOTOS / "facts.yaml").read_text())

    def analysed(task: str, *pictures: tuple[str, Path]) -> Analysis:
        return analyse(task, [assess(view, photo).quality for view, photo in pictures], facts)

    photos = {view: _PHOTOS / f"{view}.jpg" for view in _VIEWS}
    for photo in (*photos.values(), _PHOTOS / "figure.jpg", photos["front"]):
        yield inspect(photo, "image/jpeg")
        yield make_variants(photo, DEFAULT_PRESETS, directory)
    everything = list(photos.items())
    for task in ("product_analysis", "seo", "listing"):
        yield analysed(task, *everything)
    yield analysed("category", everything[0])
    pictures: dict[str, Path] = {}
    for view, photo in everything:
        yield analysed("base_view", (view, photo))
        yield analysed("sketch", (view, photo))
        pictures[f"sketch-{view}"] = directory / f"sketch-{view}.png"
        yield line_drawing(photo, pictures[f"sketch-{view}"], view=view)
        pictures[view] = directory / "large.webp"
    for number, wanted in enumerate(facts.closeups):
        at = (wanted.at.x, wanted.at.y) if wanted.at else None
        pictures[f"closeup-{number}"] = directory / f"closeup-{number}.jpg"
        yield close_up(photos[wanted.view], pictures[f"closeup-{number}"], at=at)
    yield try_on(_PHOTOS / "figure.jpg", photos["front"], directory / "try-on.jpg")
    yield generate(
        "the jacket", [photos["front"]], directory / "generated.jpeg", aspect_ratio="4:3"
    )
    yield _print(facts, pictures, directory / "pack.pdf")


def _print(facts: "Facts", pictures: dict[str, Path], out: Path) -> object:
    """Prints a pack of the sketches and close-ups."""
    from services.techfiles.document import Closeup, Pack, Product, Sketch, View
    from services.techfiles.printing import render_pdf

    pack = Pack(
        title="Bench",
        product=Product(),
        collection="Bench",
        version="v1",
        created_at=datetime.now(UTC),
        views=tuple(View(view, view) for view in _VIEWS),
        sketches=tuple(Sketch(view, f"sketch-{view}") for view in _VIEWS),
        closeups=tuple(
            Closeup(c.name, c.view, f"closeup-{n}") for n, c in enumerate(facts.closeups)
        ),
    )
    return render_pdf(pack, pictures, out)


def _main(directory: Path) -> None:
    began = time.perf_counter()
    for _ in _work(directory):
        pass
    print(time.perf_counter() - began)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
