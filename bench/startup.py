"""B11: how long `atelier up` takes, the first time and later, and the memory of the idle suite."""

import tempfile
import time
from pathlib import Path

from bench.figure import CannotRun, Figure, Report
from cli.state import State
from cli.suite import Options, Problem, Suite

_WARM_STARTS = 3
_IDLE_SECONDS = 5.0


def suite(report: Report) -> list[Figure]:
    """Measures B11. Needs the suite's usual ports, because users start it on those."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as directory:
        Path(directory).chmod(0o755)  # Postgres runs as another account when this is root
        try:
            first, _ = _start(Path(directory), report, idle=0)
            warm = [
                _start(Path(directory), report, idle=_IDLE_SECONDS) for _ in range(_WARM_STARTS)
            ]
        except Problem as problem:
            raise CannotRun(str(problem)) from None
    seconds = sorted(took for took, _ in warm)
    megabytes = max(memory for _, memory in warm)
    note = f"{seconds[0]:.1f}-{seconds[-1]:.1f} s in {_WARM_STARTS} starts"
    return [
        Figure(
            "B11", "atelier up to all healthy, warm", "s", seconds[len(seconds) // 2], 4, note=note
        ),
        Figure("B11", "atelier up to all healthy, first", "s", first, 8),
        Figure("B11", "memory of the idle suite", "MB", megabytes, 900, note="PSS, with Postgres"),
    ]


def _start(directory: Path, report: Report, idle: float) -> tuple[float, int]:
    """Returns seconds until all is healthy, and megabytes after `idle` seconds."""
    suite = Suite(State(directory), Options(), report)
    began = time.monotonic()
    suite.start()
    try:
        took = time.monotonic() - began
        time.sleep(idle)
        return took, suite.memory_megabytes()
    finally:
        suite.stop()
