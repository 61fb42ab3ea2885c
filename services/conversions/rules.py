"""Decisions of `conversions`: states, prices, the fields that a task takes, the full prompt."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

JOB_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed", "cancelled"}),
    "processing": frozenset({"processing", "pending", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
FINISHED = frozenset(state for state, targets in JOB_STATES.items() if not targets)
MAX_ATTEMPTS = 3
DEFAULT_PRIORITY = 5


class Evidence(TypedDict):
    """A measured value from 0 (bad) to 1 (good) and its weight in a confidence. `note` says for a
    person what was measured."""

    name: str
    value: float
    weight: float
    note: str


# Prices in whole credits. A job that fails or is cancelled costs nothing.
CONVERSION_CREDITS = 2
GENERATION_CREDITS: Mapping[str, int] = {"image": 3, "closeup": 1, "sketch": 1}
ANALYSIS_CREDITS = 1

# Why a provider failed. The first two are final: the same input would fail again.
BAD_INPUT = "BAD_INPUT"
REFUSED = "REFUSED"
RATE_LIMITED = "RATE_LIMITED"
UNAVAILABLE = "UNAVAILABLE"
TIMED_OUT = "TIMED_OUT"
FINAL_ERRORS = frozenset({BAD_INPUT, REFUSED})
# These say nothing about the input, so that waiting for the provider counts as no fault.
PASSING_ERRORS = frozenset({RATE_LIMITED, UNAVAILABLE})

# The keys that the result of an analysis may have, by task; the contract says what each means.
ANALYSIS_KEYS: Mapping[str, frozenset[str]] = {
    "product": frozenset(
        {
            "name",
            "model",
            "condition",
            "condition_details",
            "categories",
            "brands",
            "colours",
            "image_quality",
        }
    ),
    "base_view": frozenset(
        {"views", "materials", "dimensions", "features", "colours", "image_quality"}
    ),
    "category": frozenset({"category", "subcategory"}),
    "sketch": frozenset({"views", "call_outs", "measurements"}),
    "seo": frozenset({"title", "description", "keywords", "slug", "scores"}),
    "listing": frozenset(
        {
            "title",
            "bullets",
            "description",
            "price",
            "category",
            "subcategory",
            "condition",
            "condition_details",
        }
    ),
}
ANALYSIS_BYTES = 256 * 1024  # limit of a result from an outside runner, as JSON

MIME_TYPES: Mapping[str, str] = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
GENERATION_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "image": {"aspect_ratio": "1:1", "quality": "standard", "format": "jpeg", "resolution": "1K"},
    "closeup": {"format": "jpeg"},
    "sketch": {"format": "png"},
}
_IMAGE_FIELDS = ("style", "aspect_ratio", "quality", "resolution", "seed", "reference_asset_ids")
# Fields that a task needs, and fields that mean nothing to it.
NEEDED: Mapping[str, Sequence[str]] = {
    "image": ("prompt",),
    "closeup": ("source_asset_id",),
    "sketch": ("source_asset_id",),
}
MEANINGLESS: Mapping[str, Sequence[str]] = {
    "image": ("source_asset_id", "view", "at"),
    "closeup": _IMAGE_FIELDS,
    "sketch": (*_IMAGE_FIELDS, "at"),
}


def generation_problem(task: str, given: frozenset[str]) -> tuple[str, str] | None:
    """Returns the first field that the task needs and `given` lacks, or that is in `given` and
    means nothing to the task, and what is wrong; None if all is well."""
    for name in NEEDED[task]:
        if name not in given:
            return name, f"is needed for task {task}"
    for name in MEANINGLESS[task]:
        if name in given:
            return name, f"means nothing to task {task}; leave it out"
    return None


def full_prompt(
    task: str,
    prompt: str,
    *,
    style: str,
    aspect_ratio: str,
    quality: str,
    elements: Sequence[str],
    name: str,
    view: str,
) -> str:
    """Returns the prompt that the provider is given. The contract has the template, at
    Generation.full_prompt."""
    prompt = " ".join(prompt.split())
    if task != "image":
        what = "Close-up" if task == "closeup" else "Technical line drawing"
        subject = f" of {name}" if name else ""
        side = f", {view} view" if view else ""
        return _sentences([f"{what}{subject}{side}", prompt])
    return _sentences(
        [
            prompt,
            f"Style: {style}" if style else "",
            f"Aspect ratio: {aspect_ratio}",
            f"Quality: {quality}",
            f"References show: {'; '.join(elements)}" if elements else "",
        ]
    )


def confidence(evidence: Sequence[Evidence]) -> float:
    """Returns the mean of the values by their weights; 0 without any."""
    weights = sum(item["weight"] for item in evidence)
    return (
        min(1.0, sum(item["value"] * item["weight"] for item in evidence) / weights)
        if weights
        else 0.0
    )


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)
