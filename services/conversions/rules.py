"""Decisions of `conversions`: states, credits to set aside, the fields that a task takes, the full
prompt."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

JOB_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed", "cancelled"}),
    "processing": frozenset({"processing", "pending", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"pending"}),  # an operator requeues the job
    "cancelled": frozenset(),
}
BATCH_STATES: Mapping[str, frozenset[str]] = {
    "running": frozenset({"paused", "completed", "cancelled"}),
    "paused": frozenset({"running", "completed", "cancelled"}),
    "completed": frozenset({"running"}),
    "cancelled": frozenset(),
}
FINISHED = frozenset({"completed", "failed", "cancelled"})
MAX_ATTEMPTS = 3
DEFAULT_PRIORITY = 5

BATCH_ITEMS = 10_000
# How many items of a batch wait in the queue at once. The rest is created later, so that pausing,
# or moving a batch to the front, touches this many jobs at most.
BATCH_WAITING = 100
# Why a batch is paused.
REQUESTED = "requested"
CREDITS_EXHAUSTED = "credits_exhausted"
DAY_BUDGET = "budget_exceeded"
MAX_CREDITS = "max_credits"
NO_CONSENT = "consent"
NO_PROVIDER = "provider"


def retention_class(table: str, state: str) -> str:
    """Returns the class by which a job that has ended is kept."""
    return table if state == "completed" else "failed"


def retains_inputs(table: str, state: str) -> bool:
    """Returns whether retention takes the inputs of a job by themselves: photographs of people."""
    return table == "conversions" and state == "completed"


class FindingRow(TypedDict):
    """A value of an analysis with its source, as it is stored. `box`: left, top, width and height
    of the place in picture number `picture`, in fractions. `disagrees`: the result has another
    value."""

    key: str
    value: Any  # JSON
    source: str
    model: str
    confidence: float
    note: str
    picture: int
    box: list[float] | None
    disagrees: bool


class Evidence(TypedDict):
    """A measured value from 0 (bad) to 1 (good) and its weight in a confidence. `note` says for a
    person what was measured."""

    name: str
    value: float
    weight: float
    note: str


# What a provider of models can be asked for, as settings, routes and records name it.
CONVERSION_TASK = "conversion"
TASKS = (
    CONVERSION_TASK,
    "generation.image",
    "generation.closeup",
    "generation.sketch",
    "analysis.product",
    "analysis.base_view",
    "analysis.category",
    "analysis.sketch",
    "analysis.seo",
    "analysis.listing",
)
# What a provider is asked that judges a job before another one is sent it: no job's own task.
MODERATION_TASK = "moderation"
# The source types of pictures that a trained model made, or had a part in: these are signed.
TRAINED_SOURCES = frozenset({"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"})
# The purpose that a consent must have, by the noun of the task; `ALL_PURPOSES` covers every one.
PURPOSES = {"conversion": "try_on", "generation": "generation", "analysis": "analysis"}
ALL_PURPOSES = "all"
LOCAL = "local"  # the provider that is part of this service
# Providers on machines of the operator's own: a call costs nothing unless the provider says so.
OWN_MACHINES = frozenset({"grpc", "comfyui"})
NOUNS = ("conversion", "generation", "analysis")

# Why a provider failed. The first two are final: the same input would fail again.
BAD_INPUT = "BAD_INPUT"
REFUSED = "REFUSED"
RATE_LIMITED = "RATE_LIMITED"
UNAVAILABLE = "UNAVAILABLE"
TIMED_OUT = "TIMED_OUT"
# The provider answered with something that is no result: HTML, no picture, values that break the
# schema. It counts as a fault, since every attempt may cost money.
BAD_ANSWER = "BAD_ANSWER"
# The provider doesn't serve this deployment: the key is refused, the quota is used up, the model is
# unknown. The operator must act, and the provider is switched off until then.
ACCOUNT = "ACCOUNT"
# A provider was not called: the call would cost more than a budget allows.
BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
# The consent to the use of a person's photograph expired, was revoked or was never given.
CONSENT = "CONSENT"
# What fails so is for its owner to mend. The triggers note_dead_job of tables.sql have these words.
FINAL_ERRORS = frozenset({BAD_INPUT, REFUSED, BUDGET_EXCEEDED, CONSENT})
# These say nothing about the input, so that waiting for the provider counts as no fault, and the
# next provider of the route is asked.
PASSING_ERRORS = frozenset({RATE_LIMITED, UNAVAILABLE, ACCOUNT})

# Whether a provider charges the deployment for a call.
NOT_CHARGED = "none"
POSSIBLY_CHARGED = "possible"
CHARGED = "charged"


def charge_of_lost(provider: str) -> str:
    """Returns whether a provider may charge for a call whose answer was lost."""
    return NOT_CHARGED if provider in OWN_MACHINES else POSSIBLY_CHARGED


# A provider that says "later" is left alone for at least the first and at most the second, in
# seconds: what it says may be wrong.
LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1.0, 900.0
# A provider that failed so many times in a row is left alone for a while, which doubles with every
# further failure.
BREAKER_FAILURES = 5
_FIRST_BREAK_SECONDS, _LONGEST_BREAK_SECONDS = 15.0, 600.0


def break_seconds(failures: int) -> float:
    """Returns how long a provider is left alone after so many failures in a row; 0 below the
    limit."""
    beyond = failures - BREAKER_FAILURES
    return (
        0.0
        if beyond < 0
        else min(_FIRST_BREAK_SECONDS * 2.0 ** min(beyond, 10), _LONGEST_BREAK_SECONDS)
    )


VIEWS = ("front", "back", "side")
# Where a value comes from: the caller; a length in a picture with a declared scale, or another
# figure of it; text or a code in a picture; a model; a person who looked at it.
SUPPLIED = "supplied"
MEASURED = "measured"
READ = "read"
FOUND = "found"
CONFIRMED = "confirmed"

# What was read counts from this confidence. A reader's own score is no guide: wrong lines come with
# 0.88 to 0.98. So a value that checks itself, or that the caller states too, is given 0.9 or more,
# and any other 0.3: it is shown as a finding, but doesn't enter the result or raise a confidence.
READ_COUNTS_FROM = 0.5

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
            "codes",
            "ean",
            "size",
            "composition",
            "care",
            "origin",
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
ANALYSIS_BYTES = 256 * 1024  # limit of a result from an outside worker, as JSON

DATASET_IMAGES = 3  # of a dataset that a generation refers to, unless it says otherwise
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# How much time statistics may be about.
MOST_DAYS = 3660
MOST_DAYS_BY_DAY = 366

MIME_TYPES: Mapping[str, str] = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
GENERATION_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "image": {"aspect_ratio": "1:1", "quality": "standard", "format": "jpeg", "resolution": "1K"},
    "closeup": {"format": "jpeg"},
    "sketch": {"format": "png"},
}
_IMAGE_FIELDS = (
    "style",
    "aspect_ratio",
    "quality",
    "resolution",
    "seed",
    "reference_asset_ids",
    "references",
    "dataset_images",
)
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
    brand: str = "",
    vibe: str = "",
    logo: bool = False,
) -> str:
    """Returns the prompt that the provider is given. The contract has the template, at
    Generation.full_prompt."""
    prompt, brand, vibe = (" ".join(text.split()) for text in (prompt, brand, vibe))
    if task != "image":
        what = "Close-up" if task == "closeup" else "Technical line drawing"
        subject = f" of {name}" if name else ""
        side = f", {view} view" if view else ""
        return _sentences([f"{what}{subject}{side}", prompt])
    return _sentences(
        [
            f"Brand: {brand}" if brand else "",
            f"Vibe: {vibe}" if vibe else "",
            "Logo: as in the last picture" if logo else "",
            prompt,
            f"Style: {style}" if style else "",
            f"Aspect ratio: {aspect_ratio}",
            f"Quality: {quality}",
            f"References show: {'; '.join(elements)}" if elements else "",
        ]
    )


def noun_of(task: str) -> str:
    """Returns what a task of TASKS makes, one of NOUNS."""
    return task.partition(".")[0]


def tasks_named(names: Sequence[str]) -> frozenset[str]:
    """Returns the tasks that a setting names, by themselves or by their noun. Raises ValueError for
    a name that is neither."""
    for name in names:
        if name not in (*NOUNS, *TASKS):
            known = ", ".join(dict.fromkeys((*NOUNS, *TASKS)))
            raise ValueError(f"has no task {name[:60]!r}; there are {known}")
    return frozenset(task for task in TASKS if task in names or noun_of(task) in names)


def is_dataset_id(text: str) -> bool:
    """Returns whether a generation's dataset_id is the id of a dataset, and not a label."""
    return _UUID.fullmatch(text) is not None


def recipe_digest(inputs: Sequence[tuple[str, str]], **asked: object) -> str:
    """Returns a digest of everything that goes into the model: `asked`, and the pictures as (role,
    sha256) in order."""
    text = json.dumps([inputs, asked], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def confidence(evidence: Sequence[Evidence]) -> float:
    """Returns the mean of the values by their weights; 0 without any."""
    weights = sum(item["weight"] for item in evidence)
    return (
        min(1.0, sum(item["value"] * item["weight"] for item in evidence) / weights)
        if weights
        else 0.0
    )


def capped_confidence(evidence: Sequence[Evidence]) -> float:
    """Returns the mean of the values by their weights, but no more than the worst of them."""
    worst = min((item["value"] for item in evidence), default=0.0)
    return min(confidence(evidence), worst)


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)


def affordable(price: int, most: int | None) -> bool:
    """Returns whether a job that may cost at most `most` credits may be run at this price."""
    return most is None or price <= most


def credits_to_set_aside(prices: Sequence[int], most: int | None) -> int:
    """Returns the credits to set aside for a job that providers of these prices may run: enough for
    the dearest of those that it may cost. If it may cost none of them, it is refused."""
    return max((price for price in prices if affordable(price, most)), default=min(prices))


@dataclass(frozen=True, slots=True)
class Purse:
    """What an owner has and may spend now. `spent`: credits of today's jobs, of which `budget` is
    the limit; `free_used` of the month's `free_quota`. None: no limit."""

    available: int
    spent: int
    budget: int | None
    free_used: int
    free_quota: int | None

    @property
    def has_free(self) -> bool:
        return self.free_quota is None or self.free_used < self.free_quota

    def problem(self, price: int, *, enforced: bool) -> str:
        """Returns why no job of this price may be created: `budget` or `credits`; '' if one may.
        The function reserve_credits of tables.sql decides likewise, for the job itself."""
        if not price:
            return ""
        if self.budget is not None and self.spent + price > self.budget:
            return "budget"
        return "credits" if enforced and self.available < price else ""
