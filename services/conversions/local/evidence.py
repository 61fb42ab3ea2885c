"""Confidence that can be checked: it is computed from measured values, which are returned with
it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One measured value 0..1 (1 is good), its weight in the confidence, and a sentence about what
    was measured."""

    name: str
    value: float
    weight: float
    note: str


@dataclass(frozen=True)
class Rendering:
    """A picture that was written: its size in pixels, its confidence and the evidence for it, the
    parameters to repeat it, and where its pixels come from, a term of IPTC's vocabulary of digital
    source types."""

    width: int
    height: int
    confidence: float
    evidence: tuple[Evidence, ...]
    parameters: Mapping[str, object]
    source_type: str


def confidence(evidence: Iterable[Evidence]) -> float:
    """Returns the weighted mean of the values, 0..1, rounded to three places: the printed value is
    the one that is compared."""
    items = list(evidence)
    return round(
        sum(item.value * item.weight for item in items) / sum(item.weight for item in items), 3
    )


def capped(evidence: Iterable[Evidence]) -> float:
    """Returns the weighted mean, but no more than the worst value: what fails in one respect is not
    saved by the others."""
    items = list(evidence)
    return min(confidence(items), *(item.value for item in items))


def ramp(value: float, low: float, high: float) -> float:
    """Returns 0 at `low` and below, 1 at `high` and above, and a linear value in between. `low` may
    be the greater one."""
    return round(max(0.0, min(1.0, (value - low) / (high - low))), 3)
