"""B10: a tech pack's PDF against the compiler alone, and a large ZIP: its memory, and a reader of
another language that can't look ahead."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

from bench.figure import CannotRun, Figure, Report, Rounds
from cli.suite import ROOT
from services.techfiles import document, printing
from services.techfiles.archive import Member, stream_zip

_ROUNDS = 7
_PICTURES = 30
_MEMBERS, _MEMBER_BYTES = 100, 10 << 20
_AT = datetime(2026, 1, 1, tzinfo=UTC)


def documents(report: Report) -> list[Figure]:
    with get_context("spawn").Pool(1) as pool:
        pairs, pages = pool.apply(_pdf)
    report(f"B10 a PDF of {pages} pages with {_PICTURES} pictures, {_ROUNDS} rounds")
    pdf = Rounds(pairs).figure(
        "B10", f"PDF, {pages} pages, {_PICTURES} pictures / typst alone", "s", 1.3
    )
    return [pdf, *_zip(report)]


def _pack() -> document.Pack:
    names = [f"p{n}" for n in range(_PICTURES)]
    shell = document.Material("shell", "100 % cotton canvas", "340 g/m2", "tan")
    features = tuple(
        document.Feature(f"feature {n}", "a note", document.Point(n / 12, 0.5)) for n in range(12)
    )
    callouts = tuple(document.Callout(i, i / 12, 0.5, f"call-out {i}") for i in range(1, 12))
    views = ("front", "back", "side")
    return document.Pack(
        "Winter line",
        _AT,
        document.Product("Field jacket", description="A jacket. " * 40),
        cover=names[0],
        views=tuple(
            document.View(view, names[n], (), (shell,) * 6, features)
            for n, view in enumerate(views)
        ),
        sketches=tuple(
            document.Sketch(view, names[3 + n], callouts) for n, view in enumerate(views)
        ),
        closeups=tuple(document.Closeup(f"detail {n}", "front", names[n]) for n in range(6, 30)),
        materials=(shell,) * 40,
        bill_of_materials=(document.BillItem("zip", quantity=1, unit="piece"),) * 60,
        points_of_measure=tuple(_point(number) for number in range(40)),
        credits=(document.CreditLine("Sketch: front", "local", 1),) * 20,
        provenance=tuple(_origin(name) for name in names),
    )


def _point(number: int) -> document.PointOfMeasure:
    return document.PointOfMeasure(str(number), f"point {number}", 10.5, "cm", 0.5, "front")


def _origin(name: str) -> document.Provenance:
    return document.Provenance(f"file {name}", name * 9, "0" * 64, "uploaded by the owner", _AT)


def _pdf() -> tuple[list[tuple[float, float]], int]:
    """Returns pairs of seconds (ours, the compiler alone), and the number of pages."""
    import pikepdf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = _pictures(folder)
        alone = _ready(folder / "alone", pictures)
        pairs = []
        for _ in range(_ROUNDS):
            ours = _seconds(lambda: printing.render_pdf(_pack(), pictures, folder / "ours.pdf"))
            pairs.append((ours, _seconds(lambda: _compile(alone / "pack.typ"))))
            for _ in range(10):  # the compiler's cache would make its next round faster
                _compile(alone / "nothing.typ")
        with pikepdf.open(folder / "ours.pdf") as pdf:
            return pairs, len(pdf.pages)


def _pictures(folder: Path) -> dict[str, Path]:
    import pyvips

    photo = pyvips.Image.thumbnail(str(ROOT / "examples/photos/front.jpg"), 1600).copy_memory()
    pictures = {f"p{n}": folder / f"p{n}.jpg" for n in range(_PICTURES)}
    for number, path in enumerate(pictures.values()):
        (photo + number).cast("uchar").jpegsave(str(path), Q=88)
    return pictures


def _ready(alone: Path, pictures: Mapping[str, Path]) -> Path:
    """Makes the folder that the compiler alone gets: the same template, data and pictures."""
    alone.mkdir()
    for path in pictures.values():
        shutil.copy(path, alone / path.name)
    printing.write_data(_pack(), {key: path.name for key, path in pictures.items()}, alone, [])
    shutil.copy(ROOT / "services/techfiles/pack.typ", alone / "pack.typ")
    (alone / "fonts.json").write_text('["Open Sans", "Libertinus Serif", "DejaVu Sans Mono"]')
    (alone / "nothing.typ").write_text("")
    return alone


def _compile(source: Path) -> None:
    import typst

    bundled = str(files("ttf_opensans").joinpath("ttf"))
    typst.compile(
        str(source),
        output=str(source.with_suffix(".pdf")),
        font_paths=typst.Fonts(include_system_fonts=False, font_paths=[bundled]),
        ignore_system_fonts=True,
    )


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _zip(report: Report) -> list[Figure]:
    if shutil.which("javac") is None:
        raise CannotRun("B10 reads its ZIP by Java; install a JDK of 11 or later")
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["javac", "-d", name, str(ROOT / "bench/Entries.java")], check=True)
        writer = subprocess.Popen(
            [sys.executable, "-m", "bench.printing"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=False,
        )
        read = subprocess.run(
            ["java", "-cp", name, "Entries"], stdin=writer.stdout, capture_output=True, check=True
        )
        assert writer.stdout is not None and writer.stderr is not None
        writer.stdout.close()
        first, last = (int(word) for word in writer.stderr.read().split())
        if writer.wait():
            raise CannotRun("B10: the ZIP couldn't be written")
    entries, size = (int(word) for word in read.stdout.split())
    if entries != _MEMBERS + 2 or size < _MEMBERS * _MEMBER_BYTES:
        raise CannotRun(f"B10: Java read {entries} entries with {size} bytes of the ZIP")
    report(f"B10 Java read {entries} entries with {size >> 20} MB; peak memory {last >> 10} MB")
    grown = (last - first) / 1024
    return [Figure("B10", "ZIP of 1 GB: memory from the first 10 MB on", "MB", grown, 8)]


def _write_zip() -> None:
    """Writes a ZIP to the standard output; then the peak memory in kilobytes after the first member
    and at the end, to the standard error."""
    block = os.urandom(1 << 20)
    digest = hashlib.sha256(block * (_MEMBER_BYTES >> 20)).hexdigest()
    peaks: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(_MEMBER_BYTES >> 20):
            yield block
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    members = [
        Member(f"04-closeups/{n}.jpg", chunks, _MEMBER_BYTES, digest) for n in range(_MEMBERS)
    ]
    for piece in stream_zip(members, {}, _AT):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    print(peaks[0], peaks[-1], file=sys.stderr)


if __name__ == "__main__":
    _write_zip()
