"""Provider `local`: pixel work and rules on this machine, no learned model. The same input gives
the same bytes.

Pixels are touched only in the child processes of an ImagingPool. The functions that run there
import what they need when they are called, so that this process never loads libvips; they return
plain values.
"""

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from services.conversions import local, rules
from services.conversions.local.analyse import analyse
from services.conversions.local.evidence import Evidence as Measure
from services.conversions.local.evidence import Rendering
from services.conversions.local.quality import Assessed
from services.conversions.local.reading import Labels
from services.conversions.providers import reading
from services.conversions.providers.contract import (
    AnalysisRequest,
    Call,
    Found,
    InputPicture,
    Measured,
    Model,
    Picture,
    PictureRequest,
    ProviderFailed,
)
from services.conversions.providers.reading import PictureText
from services.conversions.rules import Evidence
from shared.formats.facts import parse_facts
from shared.imaging import ImageRejected, ImagingPool
from shared.imaging import Reason as Rejection

_SECONDS = 60.0  # several times what 50 megapixels take
_MOST_KNOWN = 1000  # pictures whose measures and texts are kept, each some kilobytes at most
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_TASKS = {"product": "product_analysis"}

NAME = local.MODEL_NAME
_MODEL = Model(local.MODEL_NAME, local.MODEL_VERSION)
TASKS: Mapping[str, str] = dict.fromkeys(rules.TASKS, f"{_MODEL.name} {_MODEL.version}")

T = TypeVar("T")


class LocalProvider:
    name = NAME
    tasks = TASKS

    def __init__(self, pool: ImagingPool, models: Path | None = None) -> None:
        """`models`: the folder of the vision models, or None to work without them."""
        self._pool = pool
        self._models = models
        self._label_pool = reading.open_label_pool()
        self._assessed: _Kept[Assessed] = _Kept()
        self._labels: _Kept[Labels] = _Kept()

    async def close(self) -> None:
        """Ends the process that reads labels. The other pool belongs to the worker."""
        if self._label_pool:
            await self._label_pool.close()

    async def cancel(self, handle: str) -> None:
        """There is nothing to cancel: its work ends with the job's attempt."""

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        """Makes a picture in the request's directory. No call is recorded: it costs nothing."""
        paths = [each.path for each in request.pictures]
        out = request.directory / f"result{_SUFFIXES[request.file_format]}"
        match request.task:
            case rules.CONVERSION_TASK:
                return await self._run(_try_on, *paths, out, request.style, self._models)
            case "generation.closeup":
                return await self._run(_close_up, paths[0], out, request.at, self._models)
            case "generation.sketch":
                return await self._run(_sketch, paths[0], out, request.view)
            case _:
                return await self._run(_image, paths, out, request)

    async def visual_elements(self, references: Sequence[Path]) -> list[str]:
        """Returns what the references show, one short statement each, no statement twice."""
        return await self._run(_visual_elements, tuple(references))

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        """Finds nothing: what is stated, measured and read is in `measured`."""
        return Found(_MODEL, [], {})

    async def measured(
        self, task: str, images: Sequence[InputPicture], facts: Mapping[str, Any]
    ) -> Measured:
        """Runs a named analysis on what is stated and what can be measured and read."""
        labels = task in reading.LABEL_TASKS
        seen = await asyncio.gather(*(self._seen(each, labels=labels) for each in images))
        stated = parse_facts(facts)
        found = analyse(_TASKS.get(task, task), [each.quality for each, _ in seen], stated)
        texts = [text for _, text in seen]
        note = reading.note(task, texts, installed=self._label_pool is not None)
        return Measured(
            _supplied(found.result),
            found.needs,
            _noted(_evidence(found.evidence), note),
            reading.findings(task, texts, stated),
        )

    async def _seen(self, image: InputPicture, *, labels: bool) -> tuple[Assessed, PictureText]:
        """Measures and reads a photograph once and keeps the result for a while: a product goes
        through some ten analyses of the same photographs."""
        digest = await asyncio.to_thread(_digest, image.path)
        seen = await self._assessed.get(digest, lambda: self._run(_assess, image.path))
        codes, lines = seen.codes, None
        if labels and (read := await self._read(digest, image.path, closer=not codes)):
            codes, lines = codes or read.codes, read.lines
        quality = replace(seen.quality, view=image.role)
        return replace(seen, quality=quality), PictureText(image.role, codes, lines)

    async def _read(self, digest: bytes, path: Path, *, closer: bool) -> Labels | None:
        """Reads the labels of a photograph. Returns None without the extra, and if it fails: a
        photograph that was measured is no less worth without its labels."""
        pool = self._label_pool
        if pool is None:
            return None
        function = functools.partial(_read_labels, path, closer)
        try:
            return await self._labels.get(digest, lambda: pool.run(function, timeout=_SECONDS))
        except (ImageRejected, RuntimeError) as failure:
            structlog.get_logger("reading").warning("labels can't be read", cause=str(failure))
            return None

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


class _Kept(Generic[T]):
    """The most recent results by the digest of their picture."""

    def __init__(self) -> None:
        self._known: dict[bytes, T] = {}

    async def get(self, digest: bytes, make: Callable[[], Awaitable[T]]) -> T:
        known = self._known.pop(digest, None)
        if known is None:
            known = await make()
        self._known[digest] = known  # the most recently used stays longest
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known


# The functions below run in a child process.


def _try_on(person: Path, cloth: Path, out: Path, style: str, models: Path | None) -> Picture:
    from services.conversions.local.tryon import try_on

    return _picture(out, try_on(person, cloth, out, style=style or None, models=models))


def _visual_elements(references: Sequence[Path]) -> list[str]:
    from services.conversions.local.elements import unique_visual_elements

    return unique_visual_elements(references)


def _image(references: Sequence[Path], out: Path, request: PictureRequest) -> Picture:
    from services.conversions.local.generate import generate

    rendering = generate(
        request.prompt,
        references,
        out,
        style=request.style or None,
        aspect_ratio=request.aspect_ratio,
        quality=request.quality,
        format=request.file_format,
        resolution=request.resolution,
        seed=request.seed,
    )
    return _picture(out, rendering)


def _close_up(
    source: Path, out: Path, at: tuple[float, float] | None, models: Path | None
) -> Picture:
    from services.conversions.local.closeup import close_up

    return _picture(out, close_up(source, out, at=at, models=models))


def _sketch(source: Path, out: Path, view: str) -> Picture:
    from services.conversions.local.sketch import line_drawing

    return _picture(out, line_drawing(source, out, view=view))


def _assess(path: Path) -> Assessed:
    from services.conversions.local.assess import assess

    return assess("", path)


def _read_labels(path: Path, closer: bool) -> Labels:
    from services.conversions.local.labels import read_labels

    return read_labels(path, closer=closer)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _picture(out: Path, rendering: Rendering) -> Picture:
    parameters = dict(rendering.parameters)
    seed = parameters.pop("seed", None)
    return Picture(
        out,
        _MODEL,
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


def _noted(evidence: list[Evidence], note: str) -> list[Evidence]:
    """Says at the evidence for what is known whether labels were read."""
    return [
        {**each, "note": f"{each['note']}; {note}"}
        if note and each["name"] == "completeness"
        else each
        for each in evidence
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
