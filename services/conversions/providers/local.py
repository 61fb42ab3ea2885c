"""Provider `local`: pixel work and rules on this machine, no learned model. The same input gives
the same bytes.

Pixels are touched only in the child processes of an ImagingPool. The functions that run there
import what they need when they are called, so that this process never loads libvips; they return
plain values.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from services.conversions import local, rules
from services.conversions.local.analyse import analyse
from services.conversions.local.evidence import Evidence as Measure
from services.conversions.local.evidence import Rendering
from services.conversions.local.quality import Quality
from services.conversions.providers.contract import (
    AnalysisResult,
    ImageSettings,
    Picture,
    ProviderFailed,
)
from services.conversions.rules import Evidence
from shared.formats.facts import parse_facts
from shared.imaging import ImageRejected, ImagingPool
from shared.imaging import Reason as Rejection

_SECONDS = 60.0  # several times what 50 megapixels take
_MOST_KNOWN = 1000  # measured pictures that are kept, each under a kilobyte
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_TASKS = {"product": "product_analysis"}

T = TypeVar("T")


class LocalProvider:
    name = local.MODEL_NAME
    version = local.MODEL_VERSION

    def __init__(self, pool: ImagingPool) -> None:
        self._pool = pool
        self._known: dict[bytes, Quality] = {}

    async def try_on(self, person: Path, cloth: Path, directory: Path, *, style: str) -> Picture:
        return await self._run(_try_on, person, cloth, directory / "result.jpg", style)

    async def visual_elements(self, references: Sequence[Path]) -> list[str]:
        return await self._run(_visual_elements, tuple(references))

    async def image(
        self, prompt: str, references: Sequence[Path], directory: Path, settings: ImageSettings
    ) -> Picture:
        out = directory / f"result{_SUFFIXES[settings.format]}"
        return await self._run(_image, prompt, tuple(references), out, settings)

    async def close_up(
        self,
        prompt: str,
        source: Path,
        directory: Path,
        *,
        at: tuple[float, float] | None,
        format: str,
    ) -> Picture:
        return await self._run(_close_up, source, directory / f"result{_SUFFIXES[format]}", at)

    async def sketch(
        self, prompt: str, source: Path, directory: Path, *, view: str, format: str
    ) -> Picture:
        return await self._run(_sketch, source, directory / f"result{_SUFFIXES[format]}", view)

    async def analyse(
        self, task: str, images: Sequence[tuple[str, Path]], facts: Mapping[str, Any]
    ) -> AnalysisResult:
        pictures = await asyncio.gather(*(self._measured(view, path) for view, path in images))
        found = analyse(_TASKS.get(task, task), pictures, parse_facts(facts))
        return AnalysisResult(_supplied(found.result), found.confidence, _evidence(found.evidence))

    async def _measured(self, view: str, path: Path) -> Quality:
        """Measures a photograph once and keeps the result for a while: a product goes through some
        ten analyses of the same photographs."""
        digest = await asyncio.to_thread(_digest, path)
        known = self._known.pop(digest, None)
        if known is None:
            known = await self._run(_assess, path)
        self._known[digest] = known  # the most recently used stays longest
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return replace(known, view=view)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._pool.run(functools.partial(function, *arguments), timeout=_SECONDS)
        except ImageRejected as refusal:
            # A child process that ran out of time or memory may succeed next time; a broken picture
            # stays broken.
            unlucky = refusal.reason == Rejection.TOO_EXPENSIVE
            raise ProviderFailed(
                rules.TIMED_OUT if unlucky else rules.BAD_INPUT, refusal.message
            ) from None
        except ValueError as problem:  # the picture can be read, but not worked with
            raise ProviderFailed(rules.BAD_INPUT, str(problem)) from None


# The functions below run in a child process.


def _try_on(person: Path, cloth: Path, out: Path, style: str) -> Picture:
    from services.conversions.local.tryon import try_on

    return _picture(out, try_on(person, cloth, out, style=style or None))


def _visual_elements(references: Sequence[Path]) -> list[str]:
    from services.conversions.local.elements import unique_visual_elements

    return unique_visual_elements(references)


def _image(prompt: str, references: Sequence[Path], out: Path, settings: ImageSettings) -> Picture:
    from services.conversions.local.generate import generate

    rendering = generate(
        prompt,
        references,
        out,
        style=settings.style or None,
        aspect_ratio=settings.aspect_ratio,
        quality=settings.quality,
        format=settings.format,
        resolution=settings.resolution,
        seed=settings.seed,
    )
    return _picture(out, rendering)


def _close_up(source: Path, out: Path, at: tuple[float, float] | None) -> Picture:
    from services.conversions.local.closeup import close_up

    return _picture(out, close_up(source, out, at=at))


def _sketch(source: Path, out: Path, view: str) -> Picture:
    from services.conversions.local.sketch import line_drawing

    return _picture(out, line_drawing(source, out, view=view))


def _assess(path: Path) -> Quality:
    from services.conversions.local.assess import assess

    return assess("", path)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _picture(out: Path, rendering: Rendering) -> Picture:
    parameters = dict(rendering.parameters)
    seed = parameters.pop("seed", None)
    return Picture(
        out,
        rendering.confidence,
        _evidence(rendering.evidence),
        _supplied(parameters),
        rendering.source_type,
        seed if isinstance(seed, int) else None,
    )


def _evidence(measures: Iterable[Measure]) -> list[Evidence]:
    return [
        Evidence(name=each.name, value=each.value, weight=each.weight, note=each.note)
        for each in measures
    ]


def _supplied(values: Mapping[str, object]) -> dict[str, Any]:
    """Leaves out keys that have no value: in the contract an absent field was not supplied."""
    return {name: _supplied_item(item) for name, item in values.items() if item is not None}


def _supplied_item(value: object) -> object:
    if isinstance(value, dict):
        return _supplied(value)
    if isinstance(value, list | tuple):
        return [_supplied_item(item) for item in value]
    return value
