"""The contract of a provider of models: what it offers, and how it fails.

A provider implements the protocols of the kinds of jobs that it can serve, one or several. It works
on local files and plain values: fetching inputs, storing results, retrying, charging and recording
are the same for every provider and happen in `runs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.conversions.rules import Evidence


@dataclass
class ProviderFailed(Exception):
    """Raised if the provider can't do the work, or refuses to. `error_class` is one of those in
    rules.py and decides whether the job is attempted again."""

    error_class: str
    message: str


@dataclass(frozen=True)
class Picture:
    """A picture that was made. `confidence`: the weighted mean of `evidence`. `parameters` and
    `seed` are for the recipe; `seed` None: nothing was random. `source_type`: where its pixels come
    from, a term of IPTC's vocabulary of digital source types, which the file states, too."""

    path: Path
    confidence: float
    evidence: list[Evidence]
    parameters: dict[str, Any]
    source_type: str
    seed: int | None = None


@dataclass(frozen=True)
class AnalysisResult:
    """What was found in pictures and facts, as plain values ready for JSON."""

    result: dict[str, Any]
    confidence: float
    evidence: list[Evidence]


@dataclass(frozen=True)
class ImageSettings:
    """The settings of a picture from a prompt, in the words of the contract. `seed` None: the
    provider derives one."""

    style: str
    aspect_ratio: str
    quality: str
    format: str
    resolution: str
    seed: int | None


class Provider(Protocol):
    """Every method of a provider may raise ProviderFailed. Pictures are written into `directory`,
    which belongs to the one call."""

    name: str
    version: str


class TryOnProvider(Provider, Protocol):
    """Serves conversions."""

    async def try_on(self, person: Path, cloth: Path, directory: Path, *, style: str) -> Picture:
        """Makes a picture of the person wearing the garment."""


class PictureProvider(Provider, Protocol):
    """Serves generations."""

    async def visual_elements(self, references: Sequence[Path]) -> list[str]:
        """Returns what the references show, one short statement each, no statement twice."""

    async def image(
        self, prompt: str, references: Sequence[Path], directory: Path, settings: ImageSettings
    ) -> Picture:
        """Makes a picture from a full prompt and references."""

    async def close_up(
        self,
        prompt: str,
        source: Path,
        directory: Path,
        *,
        at: tuple[float, float] | None,
        format: str,
    ) -> Picture:
        """Makes a detail of a photograph, around `at` (fractions of it) or, if None, where
        attention falls."""

    async def sketch(
        self, prompt: str, source: Path, directory: Path, *, view: str, format: str
    ) -> Picture:
        """Makes a technical line drawing in the photograph's frame."""


class AnalysisProvider(Provider, Protocol):
    """Serves analyses."""

    async def analyse(
        self, task: str, images: Sequence[tuple[str, Path]], facts: Mapping[str, Any]
    ) -> AnalysisResult:
        """Runs a named task on (view, picture) pairs and facts in their plain form."""
