"""Describes in words what a reference picture shows, as far as it can be measured: colour, light,
contrast, texture, frame."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pyvips

from services.conversions.local import colours, picture, subject
from services.conversions.local.subject import Subject
from shared.imaging.measure import measure
from shared.imaging.model import Measures

_SIDE = 1000


def unique_visual_elements(references: Sequence[Path]) -> list[str]:
    """Returns one list for all references, in their order, each statement once. Every statement is
    a measurement."""
    found: list[str] = []
    for path in references:
        photo = picture.open_upright(path, _SIDE)
        cut = subject.find(photo)
        measures = subject_measures(photo, cut)
        whole = "picture" if cut.separation == 0 else "subject"
        found += [
            f"{colours.name(colours.rgb(colour.hex))} {colour.hex} on {colour.share:.0%} of the"
            f" {whole}"
            for colour in measures.colours[:3]
            if colour.share >= 0.04
        ]
        if cut.separation:
            backdrop = colours.code(cut.background)
            found.append(
                f"{colours.name(cut.background)} {backdrop} backdrop, subject fills"
                f" {cut.coverage:.0%}"
            )
        brightness = _level(measures.exposure, 0.35, 0.7, "dark", "light")
        found.append(f"{whole} lightness {measures.exposure:.2f} of 1 ({brightness})")
        found += _surface(photo, cut)
    return list(dict.fromkeys(found))


def subject_measures(photo: pyvips.Image, cut: Subject) -> Measures:
    """Measures the subject alone: its box, with the backdrop in it made transparent."""
    inside = subject.cut_out(photo, cut)
    with tempfile.TemporaryDirectory() as directory:
        masked, boxed = Path(directory) / "masked.png", Path(directory) / "boxed.png"
        inside.write_to_file(str(masked), compression=1, keep="none")
        inside[:3].write_to_file(str(boxed), compression=1, keep="none")
        # The edge of a cut-out is sharp even if the photograph isn't, so sharpness is measured in
        # the box with its backdrop.
        return replace(measure(masked), sharpness=measure(boxed).sharpness)


def _surface(photo: pyvips.Image, cut: Subject) -> list[str]:
    """Returns contrast and fine texture of the subject, as standard deviations of lightness
    (0..100)."""
    lightness = picture.flat(photo).colourspace("lab")[0]
    inside = subject.alpha(cut.mask, photo.width, photo.height) > 200
    area = max(1e-6, inside.avg() / 255)
    weight = inside / 255
    mean = (lightness * weight).avg() / area
    contrast = sqrt(((lightness - mean) ** 2 * weight).avg() / area)
    fine = lightness - lightness.gaussblur(2.0)
    texture = sqrt((fine * fine * weight).avg() / area)
    return [
        f"contrast {contrast:.1f} of 50 ({_level(contrast, 6, 16, 'low', 'high')})",
        f"fine texture {texture:.1f} ({_level(texture, 0.8, 2.5, 'smooth', 'coarse')})",
    ]


def _level(value: float, low: float, high: float, below: str, above: str) -> str:
    return below if value < low else above if value > high else "medium"
