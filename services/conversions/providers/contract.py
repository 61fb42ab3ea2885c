"""The contract of a provider of models: what it is asked, what it answers, and how it fails.

A provider works on local files and plain values. Fetching inputs, choosing the provider, recording
its calls, storing results, retrying and charging are the same for every provider and happen in
`runs`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from services.conversions import rules
from services.conversions.rules import Evidence


@dataclass
class ProviderFailed(Exception):
    """Raised if the provider can't do the work, or refuses to.

    `error_class` is one of those in rules.py and decides what happens next. `message` is for the
    caller, except with ACCOUNT, where it is for the operator. `category`: the provider's word for
    why it refused. `retry_after`: the pause in seconds that it asks for; 0 for none. `charge` says
    whether the provider may charge for it. `provider`, its name, and `kept`, whether it has taken a
    call whose result can be asked for later, are set by whoever asked it.
    """

    error_class: str
    message: str
    category: str = ""
    retry_after: float = 0.0
    charge: str = rules.NOT_CHARGED
    provider: str = ""
    kept: bool = False

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class InputPicture:
    """A picture that is given to a provider. `role`: `user`, `cloth`, `reference`, `source`, or a
    view such as `front`."""

    role: str
    path: Path


@dataclass(frozen=True)
class PictureRequest:
    """A picture to be made. `task`: one of rules.TASKS.

    `prompt` is the full prompt, or the style of a try-on. The settings are in the words of the
    contract and empty where the task has none; `file_format` is that of the file to be written.
    `at`: the place of a close-up, in fractions of the source; None: where attention falls. `seed`
    None: the provider derives one."""

    task: str
    prompt: str
    pictures: Sequence[InputPicture]
    directory: Path  # belongs to this request
    file_format: Literal["jpeg", "png", "webp"] = "jpeg"
    style: str = ""
    aspect_ratio: str = ""
    quality: str = ""
    resolution: str = ""
    seed: int | None = None
    view: str = ""
    at: tuple[float, float] | None = None


@dataclass(frozen=True)
class AnalysisRequest:
    """A named task on pictures, whose roles are their views, and facts in their plain form."""

    task: str
    pictures: Sequence[InputPicture]
    facts: Mapping[str, Any]
    directory: Path  # belongs to this request


@dataclass(frozen=True)
class ModerationRequest:
    """What a job is about to send, to be judged: words, facts in their plain form, pictures."""

    prompt: str
    style: str
    facts: Mapping[str, Any]
    pictures: Sequence[InputPicture]
    directory: Path  # belongs to this request

    @property
    def text(self) -> str:
        """All words of the job, as one text."""
        facts = json.dumps(self.facts, ensure_ascii=False) if self.facts else ""
        return "\n\n".join(filter(None, dict.fromkeys((self.prompt, self.style, facts))))


@dataclass(frozen=True)
class Model:
    """The model that made something, for the recipe."""

    name: str
    version: str


@dataclass(frozen=True)
class Picture:
    """A picture that was made. `confidence`: computed from `evidence`. `parameters` and
    `seed` are for the recipe; `seed` None: nothing was random, or it isn't known. `source_type`:
    where its pixels come from, a term of IPTC's vocabulary of digital source types, which the file
    states, too. `original`: the provider's own file, if it came with a manifest, and its media
    type."""

    path: Path
    model: Model
    confidence: float
    evidence: list[Evidence]
    parameters: dict[str, Any]
    source_type: str
    seed: int | None = None
    original: tuple[Path, str] | None = None


@dataclass(frozen=True)
class Finding:
    """A value and where it comes from. `key`: that of the result. `source`: one of those in
    rules.py. `model`: what found or read it. `confidence`: 0 to 1. `note`: what shows it, for a
    person. `picture`: the number of the picture that shows it, from 1; 0: none. `box`: where in it
    (left, top, width, height), in fractions."""

    key: str
    value: Any  # ready for JSON
    source: str
    model: str
    confidence: float
    note: str = ""
    picture: int = 0
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Found:
    """What a model found in pictures and facts. `parameters` are for the recipe."""

    model: Model
    findings: list[Finding]
    parameters: dict[str, Any]


class Call(Protocol):
    """The record of one call to a provider that may charge for it.

    A provider awaits `begins` before it sends anything, so that a call whose answer is lost is
    known. `id` names the call for providers that take a caller's id; they can find it again.
    `handle` is what an earlier attempt was told to ask for its result with; empty: start anew.
    `charged`: whether the provider charges for calls. It is False for a provider on a machine of
    the operator's own, which sets it where it costs money after all.
    """

    id: str
    handle: str
    charged: bool

    async def begins(self, model: str) -> None:
        """Records that the call is about to be sent."""

    async def submitted(self, handle: str) -> None:
        """Records what the result can be asked for with: at once, so that a crash loses nothing."""

    async def advances(self, fraction: float) -> None:
        """Publishes the progress, 0 to 1, of a call that is polled."""

    async def pauses(self, seconds: float) -> None:
        """Waits before the next poll: for so long, or until the provider calls back."""

    def used(self, **figures: float | int | str) -> None:
        """Notes what the provider says about usage and cost, for the record."""


class Unrecorded:
    """A call of which no record is kept: it costs nothing."""

    handle = ""
    charged = False

    def __init__(self, id: str = "") -> None:
        self.id = id

    async def begins(self, model: str) -> None: ...
    async def submitted(self, handle: str) -> None: ...
    async def advances(self, fraction: float) -> None: ...
    async def pauses(self, seconds: float) -> None: ...
    def used(self, **figures: float | int | str) -> None: ...


class Provider(Protocol):
    """A provider of models. `tasks`: what it can do, in the words of rules.TASKS, and
    rules.MODERATION_TASK if it is a Moderator. Both methods may raise ProviderFailed."""

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> Mapping[str, str]:
        """The tasks that it can do, each with the name of its model."""

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        """Makes a picture in the request's directory."""

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        """Runs a named task."""

    async def cancel(self, handle: str) -> None:
        """Asks the provider to give up a call that it runs. Does nothing if it can't be asked."""

    async def close(self) -> None: ...


@runtime_checkable
class Moderator(Protocol):
    """A provider that can judge what a job is about to send."""

    async def moderate(self, request: ModerationRequest) -> None:
        """Returns if nothing is against the job. Raises ProviderFailed: REFUSED, with its
        categories, if something is."""


@dataclass(frozen=True)
class Measured:
    """What was stated and what was measured, by the keys of a task's result. `needs`: what the task
    wants to know, and whether it was stated. `read`: what texts and codes in the pictures say."""

    result: dict[str, Any]
    needs: Mapping[str, bool]
    evidence: list[Evidence]
    read: Sequence[Finding] = ()


class Measurer(Protocol):
    """What `local` does for every job, whichever provider does the work."""

    async def measured(
        self, task: str, images: Sequence[InputPicture], facts: Mapping[str, Any]
    ) -> Measured:
        """Runs a named analysis on what is stated and what can be measured."""

    async def visual_elements(self, references: Sequence[Path]) -> list[str]:
        """Returns what the references show, one short statement each, no statement twice."""
