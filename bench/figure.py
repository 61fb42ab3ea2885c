"""The result of a benchmark: our value, the reference of the same run, and the target."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Report = Callable[[str], None]


class CannotRun(Exception):
    """Why a benchmark can't run here, with the next step."""


class NeedsNode(Exception):
    """Node.js with npm is not installed, so there is nothing to compare with."""


@dataclass(frozen=True)
class Figure:
    """One line of the scorecard. `ours` and `reference` are in `unit`. `target` is the limit for
    `ratio`, or for `ours` itself without a reference. `note` says how much the rounds differed."""

    id: str
    what: str
    unit: str
    ours: float
    target: float
    reference: float | None = None
    ratio: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        value = self.ours if self.ratio is None else self.ratio
        return value <= self.target if self.at_most else value >= self.target

    @property
    def target_text(self) -> str:
        return (
            f"{'<=' if self.at_most else '>='}"
            f" {self.target:g}{' ' + self.unit if self.ratio is None else 'x'}"
        )


@dataclass(frozen=True)
class Rounds:
    """Pairs of (ours, reference), measured one right after the other. Other load on the machine
    affects both, so the median of the pairs' ratios says more than the ratio of two medians."""

    pairs: Sequence[tuple[float, float]]

    def figure(
        self, id_: str, what: str, unit: str, target: float, *, at_most: bool = True
    ) -> Figure:
        ratios = [ours / reference for ours, reference in self.pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return Figure(
            id_,
            what,
            unit,
            statistics.median(ours for ours, _ in self.pairs),
            target,
            statistics.median(reference for _, reference in self.pairs),
            middle,
            at_most,
            f"half of {len(ratios)} rounds within {low:.2f}-{high:.2f}x",
        )


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used so far, with its threads, without its
    children."""
    return time.clock_gettime(~pid << 3 | 2)  # how Linux numbers the CPU clocks of other processes
