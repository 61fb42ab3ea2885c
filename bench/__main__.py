"""`python -m bench [B1 B3 ...]` measures speeds as ratios to a reference of the same run.

It prints a line per figure as it is measured and a table at the end that fits 80 columns.
bench-out/results.json gets everything, with how much the rounds differed. The exit status is 1 only
if something couldn't run: a figure that misses its target is for a person to judge, on a machine
they know.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table

from bench import (
    calls,
    chaos,
    deleting,
    file_lists,
    history,
    images,
    main_job,
    printing,
    products,
    queueing,
    startup,
    uploads,
    watching,
)
from bench.figure import CannotRun, Figure, NeedsNode, Report
from cli.suite import ROOT

RESULTS = ROOT / "bench-out" / "results.json"
BENCHMARKS: dict[str, Callable[[Report], list[Figure]]] = {
    "B1": calls.reading,
    "B2": calls.against_fastapi,
    "B3": calls.creating,
    "B4": images.variants,
    "B5": queueing.queues,
    "B6": watching.audiences,
    "B7": history.pages,
    "B8": uploads.streaming,
    "B9": uploads.at_once,
    "B10": printing.documents,
    "B11": startup.suite,
    "B12": main_job.demo,
    "B13": deleting.bulk,
    "B7P": products.pages,
    "B7F": file_lists.pages,
    "R26": chaos.queues,
}


def main(wanted: Sequence[str]) -> int:
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        sys.exit(f"bench: there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    progress = Console(stderr=True, highlight=False)
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    for name in wanted or BENCHMARKS:
        try:
            found = _run(name, progress)
        except NeedsNode:
            left_out[name] = "needs node"
        except CannotRun as problem:
            left_out[name] = f"can't run: {problem}"
        except Exception as error:
            progress.print_exception()
            left_out[name] = f"can't run: {error!r}"
        if name in left_out:
            print(f"{name}  {left_out[name]}", flush=True)
            continue
        figures += found
        for figure in found:
            print(f"{figure.id}  {_said(figure)}  {figure.what}; {figure.note}", flush=True)
    _show(figures, left_out)
    _write(figures, left_out)
    return 1 if any(why != "needs node" for why in left_out.values()) else 0


def _run(name: str, progress: Console) -> list[Figure]:
    with progress.status(f"{name} ...") as status:
        return BENCHMARKS[name](lambda text: status.update(f"{name} {text}"))


def _said(figure: Figure) -> str:
    if figure.ratio is None:
        return f"{figure.ours:,.3g} {figure.unit}"
    against = f"{figure.ours:,.3g} / {figure.reference:,.3g} {figure.unit}"
    return f"{against} = {figure.ratio:.2f}x"


def _show(figures: Sequence[Figure], left_out: dict[str, str]) -> None:
    title = "Speeds, as ratios to a reference of the same run"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, width in (("id", 3), ("what", 35), ("ours", 11), ("target", 9), ("", 7)):
        table.add_column(column, width=width, no_wrap=True, overflow="ellipsis")
    for figure in figures:
        ours = f"{figure.ours:,.3g} {figure.unit}"
        ratio = ours if figure.ratio is None else f"{figure.ratio:.2f}x"
        met = "met" if figure.met else "not met"
        cells = (figure.id, figure.what, ratio, figure.target_text, met)
        table.add_row(*cells, style=None if figure.met else "yellow")
    for name, why in left_out.items():
        table.add_row(name, why, style="dim")
    Console(width=80).print(table)


def _write(figures: Sequence[Figure], left_out: dict[str, str]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [
        {**asdict(f), "ratio": f.ratio, "target": f.target_text, "met": f.met} for f in figures
    ]
    machine = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    at = datetime.now(UTC).isoformat(timespec="seconds")
    RESULTS.write_text(
        json.dumps({"at": at, "machine": machine, "figures": lines, "left_out": left_out}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
