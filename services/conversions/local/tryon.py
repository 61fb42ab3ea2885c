"""Makes a preview of a garment on a person: the garment is cut out, sized to the body, lit like the
scene and composited.

The preview is a flat overlay and says so: cloth doesn't fold around the body, and what the
garment's photograph doesn't show is not made up.
"""

from dataclasses import dataclass
from pathlib import Path

import pyvips

from services.conversions.local import body, picture, subject
from services.conversions.local.body import Body
from services.conversions.local.evidence import Evidence, Rendering, confidence, ramp
from services.conversions.local.scene import framed
from services.conversions.local.subject import Subject

_SOURCE_TYPE = "composite"  # made of two pictures whose own origin isn't known here
_EASE = {
    "fitted": 1.06,
    "slim": 1.06,
    "regular": 1.16,
    "relaxed": 1.24,
    "loose": 1.28,
    "oversized": 1.34,
}
"""How much wider than the body a garment lies, by the word in the style."""
_TONE = {
    "warm": ((1.04, 1.0, 0.94), 1.0),
    "cool": ((0.95, 1.0, 1.05), 1.0),
    "vivid": ((1.0, 1.0, 1.0), 1.3),
    "muted": ((1.0, 1.0, 1.0), 0.65),
    "monochrome": ((1.0, 1.0, 1.0), 0.0),
}
"""Gain per sRGB band and factor on the chroma of the finished picture, by the word in the style."""


@dataclass(frozen=True)
class _Placement:
    """scale: picture pixels per garment pixel. left, top: the place of the garment picture's
    corner."""

    scale: float
    left: int
    top: int


def try_on(
    person: Path, cloth: Path, out: Path, *, style: str | None = None, max_side: int = 2048
) -> Rendering:
    """Writes the preview (JPEG, WebP or PNG by the suffix of `out`), its longer side at most
    `max_side` pixels.

    `style` is free text. One word of _EASE and one of _TONE in it take effect; the parameters name
    them.
    """
    if not 256 <= max_side <= 4096:
        raise ValueError("max_side: 256 to 4096 pixels")
    scene = picture.flat(picture.open_upright(person, max_side))
    garment = picture.open_upright(cloth, max_side)
    scene_subject, garment_subject = subject.find(scene), subject.find(garment)
    torso, cut = body.of_person(scene_subject.mask), body.of_garment(garment_subject.mask)
    words = set((style or "").lower().replace("-", " ").replace(",", " ").split())
    fit = next((word for word in _EASE if word in words), "regular")
    tone = next((word for word in _TONE if word in words), None)
    place = _place(scene, scene_subject, torso, garment, garment_subject, cut, _EASE[fit])
    gain = _light(scene_subject, garment_subject)
    result = _compose(scene, scene_subject, torso, garment, garment_subject, place, gain)
    if tone:
        result = _toned(result, tone)
    width, height = picture.write(result, out, 90, _SOURCE_TYPE)
    evidence = _evidence(scene_subject, torso, garment_subject, cut, garment)
    parameters = {
        "style": style,
        "fit": fit,
        "tone": tone,
        "style_words_used": sorted(words & {*_EASE, *_TONE}),
        "max_side": max_side,
        "scale": round(place.scale, 4),
        "left": place.left,
        "top": place.top,
        "light_gain": round(gain, 3),
        "torso_box": _torso_box(scene_subject, torso),
        "garment_coverage": round(garment_subject.coverage, 3),
        "method": "flat overlay",
    }
    return Rendering(width, height, confidence(evidence), evidence, parameters, _SOURCE_TYPE)


def _place(
    scene: pyvips.Image,
    scene_subject: Subject,
    torso: Body,
    garment: pyvips.Image,
    garment_subject: Subject,
    cut: Body,
    ease: float,
) -> _Placement:
    to_scene = scene.width / scene_subject.mask.width
    to_garment = garment.width / garment_subject.mask.width
    scale = torso.width * to_scene * ease / (cut.width * to_garment)
    # Sleeves begin where the arms do, so the shoulders may need a little more room than the body.
    shoulders = 1.04 * torso.span * to_scene / (cut.span * to_garment)
    scale = max(scale, min(shoulders, 1.18 * scale))
    # Limits the scale: a misjudged body must give neither a tiny garment nor a huge one.
    scale = (
        max(0.15 * scene.height, min(scale * garment.height, 2.2 * scene.height)) / garment.height
    )
    left = torso.centre * to_scene - cut.centre * to_garment * scale
    top = torso.shoulder * to_scene - cut.shoulder * to_garment * scale
    return _Placement(scale, round(left), round(top))


def _light(scene_subject: Subject, garment_subject: Subject) -> float:
    """Returns the gain for the garment's brightness, from how much the backdrops differ: the
    nearest thing to a grey card."""

    def luminance(colour: tuple[float, float, float]) -> float:
        return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]

    ratio = (luminance(scene_subject.background) + 20) / (
        luminance(garment_subject.background) + 20
    )
    return float(max(0.85, min(ratio**0.5, 1.1)))


def _compose(
    scene: pyvips.Image,
    scene_subject: Subject,
    torso: Body,
    garment: pyvips.Image,
    garment_subject: Subject,
    place: _Placement,
    gain: float,
) -> pyvips.Image:
    cover = subject.alpha(garment_subject.mask, garment.width, garment.height)
    layer = picture.flat(garment).bandjoin(cover).premultiply().resize(place.scale).unpremultiply()
    placed = framed(layer, place.left, place.top, scene.width, scene.height).copy_memory()
    cloth, over = placed[:3], placed[3] / 255
    person = subject.alpha(scene_subject.mask, scene.width, scene.height) / 255
    if torso.neck is not None:
        over = over * (1 - _head(person, torso.neck * scene.height / scene_subject.mask.height))
    base = scene * (1 - _shadow(over) * person)
    lit = cloth * (_shading(scene_subject, scene.width, scene.height) * gain)
    return (lit * over + base * (1 - over)).cast("uchar").copy(interpretation="srgb")


def _shadow(over: pyvips.Image) -> pyvips.Image:
    """Returns how much the garment's edge darkens the body behind it, 0..1: the garment's shape,
    softened and a little lower."""
    small = over.shrink(8, 8)
    reach = max(1.0, small.height / 80)
    soft = small.gaussblur(reach).embed(0, round(reach * 0.8), small.width, small.height)
    soft = soft.resize(over.width / soft.width, vscale=over.height / soft.height, kernel="linear")
    return framed(soft, 0, 0, over.width, over.height) * 0.32


def _head(person: pyvips.Image, neck: float) -> pyvips.Image:
    """Returns the person above the neck, fading out below it: a collar laid flat never covers a
    head."""
    rows = pyvips.Image.xyz(person.width, person.height)[1]
    return person * picture.clip((neck - rows) / max(4.0, person.height / 120) + 0.5, 0, 1)


def _shading(scene_subject: Subject, width: int, height: int) -> pyvips.Image:
    """Returns how the light falls off across the scene, as a factor around 1. It is read from the
    backdrop, because what the person wears underneath must not show through."""
    light = subject.lightness(scene_subject, width, height)
    left, top, box_width, box_height = scene_subject.box
    middle = light(
        round((left + box_width / 2) * (width - 1)), round((top + box_height / 2) * (height - 1))
    )[0]
    return picture.clip(((light + 25) / (max(0.0, middle) + 25)) ** 0.8, 0.8, 1.15)


def _toned(image: pyvips.Image, tone: str) -> pyvips.Image:
    gains, chroma = _TONE[tone]
    lab = (image * list(gains)).cast("uchar").copy(interpretation="srgb").colourspace("lab")
    return (lab * [1, chroma, chroma]).copy(interpretation="lab").colourspace("srgb")


def _torso_box(scene_subject: Subject, torso: Body) -> dict[str, float]:
    width, height = scene_subject.mask.width, scene_subject.mask.height
    return {
        "left": round((torso.centre - torso.width / 2) / width, 4),
        "top": round(torso.shoulder / height, 4),
        "width": round(torso.width / width, 4),
        "height": round((torso.hem - torso.shoulder) / height, 4),
    }


def _evidence(
    scene_subject: Subject, torso: Body, garment_subject: Subject, cut: Body, garment: pyvips.Image
) -> tuple[Evidence, ...]:
    coverage = garment_subject.coverage
    return (
        Evidence(
            "garment_separation",
            round(garment_subject.separation, 3),
            0.25,
            "garment against its backdrop, divided at a Lab distance of"
            f" {garment_subject.threshold:.1f}",
        ),
        Evidence(
            "garment_coverage",
            ramp(coverage, 0.02, 0.12) if coverage < 0.7 else ramp(coverage, 0.97, 0.8),
            0.1,
            f"the garment fills {coverage:.0%} of its picture",
        ),
        Evidence(
            "person_separation",
            round(scene_subject.separation, 3),
            0.25,
            "person against the backdrop",
        ),
        Evidence(
            "torso",
            0.3 if torso.neck is None else 1.0,
            0.25,
            (
                "no neck found: the torso is an assumed part of the figure"
                if torso.neck is None
                else "neck and shoulders found from the outline"
            ),
        ),
        Evidence(
            "sides",
            ramp(min(torso.apart, cut.apart), 0.0, 0.15) * 0.5 + 0.5,
            0.05,
            f"arms stand apart in {torso.apart:.0%}, sleeves in {cut.apart:.0%} of the rows",
        ),
        Evidence(
            "resolution",
            ramp(max(garment.width, garment.height), 300, 1200),
            0.1,
            f"garment picture used at {garment.width} x {garment.height} px",
        ),
    )
