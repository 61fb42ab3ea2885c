"""Decisions about reviews as pure functions: which results are reviewed, when a review ends, and
what its figures say."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

THRESHOLDS = (0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)
FEW_CASES = 30  # below it a single case moves a rate by more than three points
SAMPLE_SETTING = "ATELIER_REVIEW_SAMPLE"


@dataclass(frozen=True)
class ReviewPolicy:
    """The deployment's policy. `below`: thresholds by phase. `sample`: the share of confident
    results that is reviewed, too. `decisions`: how many persons have to say the same. `due_in`:
    None if reviews have no due time."""

    below: Mapping[int, float]
    sample: float
    decisions: int
    due_in: timedelta | None

    def is_confident(self, phase: int, confidence: float | None) -> bool:
        return confidence is None or confidence >= self.below[phase]

    def wants_review(self, phase: int, confidence: float | None, source: str) -> bool:
        """Returns whether a person is asked about a result. Draws lots for the sample. What a
        person said, and what has no confidence, isn't reviewed."""
        if confidence is None or source == "reviewer":
            return False
        return not self.is_confident(phase, confidence) or random.random() < self.sample


def is_settled(needed: int, made: int, alike: int) -> bool:
    """Returns whether a review ends: enough persons said the same as the last one, or the last one
    was the last to be asked."""
    return alike >= needed or made >= 2 * needed - 1


@dataclass(frozen=True, slots=True)
class Passed:
    """The results that a threshold lets pass: all of them, those that the model was sure enough of
    then, and those that persons decided about and found wrong. `sampled` are of the confident
    ones."""

    passed: int
    confident: int
    checked: int
    wrong: int
    sampled: int
    sampled_wrong: int


def miss_rate(of: Passed) -> float | None:
    """Returns the estimated share of wrong results among those that pass. The sample stands for
    all confident results, and the reviewed ones for the others, because the two are looked at with
    different frequency. None: nothing of one of the two was looked at."""
    unsure = of.passed - of.confident
    unsure_checked = of.checked - of.sampled
    if not of.passed or (of.confident and not of.sampled) or (unsure and not unsure_checked):
        return None
    wrong = 0.0
    if of.confident:
        wrong += of.confident * of.sampled_wrong / of.sampled
    if unsure:
        wrong += unsure * (of.wrong - of.sampled_wrong) / unsure_checked
    return wrong / of.passed


def caution(of: Passed) -> str:
    """Returns why the figures of misses aren't to be relied on; empty if they are."""
    if of.confident and not of.sampled:
        return (
            f"nothing of the {of.confident} results that the model was sure of was checked; set"
            f" {SAMPLE_SETTING} to have a share of them reviewed"
        )
    if of.passed and of.checked < FEW_CASES:
        return (
            f"rests on {of.checked} cases; with fewer than {FEW_CASES} a single one moves the rate"
            " by more than three points"
        )
    if of.confident and of.sampled < FEW_CASES:
        return f"what the model was sure of is judged by a sample of {of.sampled} cases"
    return ""
