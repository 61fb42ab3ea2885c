"""Decisions of `conversions` without any machinery: states, prices, which fields a task takes, the full prompt."""

from collections.abc import Mapping, Sequence

JOB_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed", "cancelled"}),
    "processing": frozenset({"processing", "pending", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
FINISHED = frozenset(state for state, targets in JOB_STATES.items() if not targets)
MAX_ATTEMPTS = 3

# Whole credits. What fails or is cancelled costs nothing.
CONVERSION_CREDITS = 2
GENERATION_CREDITS: Mapping[str, int] = {"image": 3, "closeup": 1, "sketch": 1}
ANALYSIS_CREDITS = 1

# Why a provider couldn't. The first two are final: the same input would fail again.
BAD_INPUT = "BAD_INPUT"
REFUSED = "REFUSED"
RATE_LIMITED = "RATE_LIMITED"
UNAVAILABLE = "UNAVAILABLE"
TIMED_OUT = "TIMED_OUT"
FINAL_ERRORS = frozenset({BAD_INPUT, REFUSED})

MIME_TYPES: Mapping[str, str] = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
GENERATION_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "image": {"aspect_ratio": "1:1", "quality": "standard", "format": "jpeg", "resolution": "1K"},
    "closeup": {"format": "jpeg"},
    "sketch": {"format": "png"},
}
_IMAGE_FIELDS = ("style", "aspect_ratio", "quality", "resolution", "seed", "reference_asset_ids")
# Fields that a task needs, and fields that mean nothing to it.
NEEDED: Mapping[str, Sequence[str]] = {
    "image": ("prompt",), "closeup": ("source_asset_id",), "sketch": ("source_asset_id",),
}  # fmt: skip
MEANINGLESS: Mapping[str, Sequence[str]] = {
    "image": ("source_asset_id", "view", "at"), "closeup": _IMAGE_FIELDS, "sketch": (*_IMAGE_FIELDS, "at"),
}  # fmt: skip


def generation_problem(task: str, given: frozenset[str]) -> tuple[str, str] | None:
    """The first field that is missing or out of place among the names of those that were given, and why."""
    for name in NEEDED[task]:
        if name not in given:
            return name, f"is needed for task {task}"
    for name in MEANINGLESS[task]:
        if name in given:
            return name, f"means nothing to task {task}; leave it out"
    return None


def full_prompt(
    task: str, prompt: str, *, style: str, aspect_ratio: str, quality: str, elements: Sequence[str], name: str,
    view: str,
) -> str:  # fmt: skip
    """What the provider is given. The template stands in the contract, at Generation.full_prompt."""
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


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)
