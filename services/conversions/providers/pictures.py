"""Pictures on their way to a hosted provider and back. Pixels are touched only in the child
processes of an ImagingPool, since what comes back is as foreign as any upload."""

import asyncio
import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.conversions import rules
from services.conversions.providers.contract import (
    InputPicture,
    Model,
    Picture,
    PictureRequest,
    ProviderFailed,
)
from services.conversions.rules import Evidence
from shared.imaging import (
    Facts,
    ImageRejected,
    ImagingPool,
    Limits,
    Preset,
    Reason,
    inspect,
    make_variants,
)
from shared.settings import Settings

_SECONDS = 60.0
_LONGEST_SIDE = 2048  # what models of today look at; also leaves out where a photograph was taken
_MANY = 8  # with more pictures than these each is sent smaller, for limits of whole requests
_SIDE_OF_MANY = 1280
_ENTIRE = 16383
_LIMITS = Limits(image_bytes=40 * 1024 * 1024)
_STORED_PART = 0.9  # of the largest image that assets takes
_TRAINED = "trainedAlgorithmicMedia"
# Qualities and longest sides, until the file is small enough to be stored.
_FALLING = ((92, _ENTIRE), (80, _ENTIRE), (65, _ENTIRE), (80, 2048), (80, 1536), (80, 1024))
_MADE_WITH = "compositeWithTrainedAlgorithmicMedia"


@dataclass(frozen=True)
class Sent:
    """A picture as it is sent: a JPEG, upright, in sRGB, without metadata."""

    role: str
    content: bytes

    mime_type = "image/jpeg"

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode()

    @property
    def data_uri(self) -> str:
        return f"data:{self.mime_type};base64,{self.base64}"


class Pictures:
    def __init__(self, pool: ImagingPool, settings: Settings) -> None:
        self._pool = pool
        self._stored_bytes = round(_STORED_PART * settings.max_image_bytes)

    async def sent(self, pictures: Sequence[InputPicture], directory: Path) -> list[Sent]:
        """Returns the pictures as they are sent to a provider. Raises ProviderFailed if one can't
        be read."""
        side = _LONGEST_SIDE if len(pictures) <= _MANY else _SIDE_OF_MANY
        found = []
        for number, picture in enumerate(pictures):
            preset = Preset(f"sent-{number}", side, side, "jpeg", quality=90)
            try:
                [variant] = await self._pool.run(
                    functools.partial(make_variants, picture.path, [preset], directory),
                    timeout=_SECONDS,
                )
            except ImageRejected as refusal:
                raise ProviderFailed(_class_of(refusal, rules.BAD_INPUT), refusal.message) from None
            found.append(Sent(picture.role, await asyncio.to_thread(variant.path.read_bytes)))
        return found

    async def received(
        self,
        path: Path,
        request: PictureRequest,
        model: Model,
        parameters: dict[str, object],
        *,
        seed: int | None = None,
    ) -> Picture:
        """Checks the file that a provider gave, and writes the picture in the format that the
        request wants; a manifest stays behind in `path`. Raises ProviderFailed (BAD_ANSWER) if it
        is no picture."""
        source_type = _MADE_WITH if request.pictures else _TRAINED
        try:
            facts = await self._pool.run(
                functools.partial(inspect, path, None, _LIMITS), timeout=_SECONDS
            )
            out = await self._written(path, request, source_type)
        except ImageRejected as refusal:
            raise ProviderFailed(
                _class_of(refusal, rules.BAD_ANSWER),
                f"what {model.name} gave is not a picture that can be kept: {refusal.message}",
                charge=rules.CHARGED,
            ) from None
        evidence = _evidence(facts, request)
        return Picture(
            out,
            model,
            rules.capped_confidence(evidence),
            evidence,
            parameters,
            source_type,
            seed,
            (path, facts.mime_type) if facts.may_have_manifest else None,
        )

    async def _written(self, path: Path, request: PictureRequest, source_type: str) -> Path:
        lossless = request.file_format == "png"
        for quality, side in _FALLING:
            if lossless and quality != 80:  # only its size makes a difference
                continue
            preset = Preset("result", side, side, request.file_format, quality=quality, effort=4)
            [variant] = await self._pool.run(
                functools.partial(make_variants, path, [preset], request.directory, source_type),
                timeout=_SECONDS,
            )
            if variant.size <= self._stored_bytes:
                return variant.path
        raise ProviderFailed(
            rules.BAD_ANSWER,
            f"the picture has {variant.size} bytes even at {side} px, and"
            f" {self._stored_bytes} can be stored",
            charge=rules.CHARGED,
        )


def _class_of(refusal: ImageRejected, otherwise: str) -> str:
    # A child process that ran out of time or memory may succeed next time.
    return rules.TIMED_OUT if refusal.reason == Reason.TOO_EXPENSIVE else otherwise


_SIDES = {"1K": 1024, "2K": 2048}


def _evidence(facts: Facts, request: PictureRequest) -> list[Evidence]:
    """Returns what can be measured in a picture that a model made: whether it has the size, the
    shape and the sharpness that were asked for. Whether it shows what was asked for nobody
    measured, so that the confidence speaks of the file alone, and its weight says so."""
    width, height = facts.width or 1, facts.height or 1
    wanted = _SIDES.get(request.resolution, 768)
    size = min(1.0, max(width, height) / wanted)
    found = [
        Evidence(
            name="resolution",
            value=round(size, 3),
            weight=0.4,
            note=f"{width} x {height} px; {wanted} px on the longer side were wanted",
        )
    ]
    if request.aspect_ratio:
        across, down = map(int, request.aspect_ratio.split(":"))
        ratio = (width / height) / (across / down)
        found.append(
            Evidence(
                name="aspect_ratio",
                value=round(min(ratio, 1 / ratio), 3),
                weight=0.3,
                note=f"{width / height:.2f}; {request.aspect_ratio} was wanted",
            )
        )
    if facts.measures:
        found.append(
            Evidence(
                name="sharpness",
                value=round(min(1.0, facts.measures.sharpness / 0.6), 3),
                weight=0.3,
                note=f"detail {facts.measures.sharpness:.2f}; crisp from 0.60",
            )
        )
    # Nobody looked at the picture, so the confidence stays in the middle until a person does.
    found.append(
        Evidence(
            name="likeness",
            value=0.5,
            weight=1.0,
            note="a model made it; whether it shows what was asked for was not measured",
        )
    )
    return found
