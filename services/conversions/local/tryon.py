"""Makes a preview of a garment on a person: the garment is cut out, sized to the body, lit like the
scene and composited.

The preview is a flat overlay and says so: cloth doesn't fold around the body, and what the
garment's photograph doesn't show is not made up.
"""

from dataclasses import dataclass, replace
from math import cos, radians, sin
from pathlib import Path

import pyvips

from services.conversions.local import body, picture, plausible, subject, vision, wearer
from services.conversions.local.body import Body
from services.conversions.local.evidence import Evidence, Rendering, capped, ramp
from services.conversions.local.plausible import Outline
from services.conversions.local.scene import framed
from services.conversions.local.subject import Subject
from services.conversions.local.wearer import Wearer

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
_MOST_TURN = 25.0
"""Degrees that a garment is turned with the shoulders."""


@dataclass(frozen=True)
class _Part:
    """A photograph, what was cut out of it, and its body in pixels of the mask. wearer: the person
    whose pose was seen, if there are models for it."""

    photo: pyvips.Image
    found: Subject
    body: Body
    wearer: Wearer | None = None

    @property
    def unit(self) -> float:
        """Returns pixels of the photograph per pixel of the mask."""
        return self.photo.width / self.found.mask.width

    @property
    def outline(self) -> Outline:
        return plausible.outline(self.found.mask, self.body)


@dataclass(frozen=True)
class _Placement:
    """scale: picture pixels per garment pixel. left, top: the place of the garment picture's
    corner. widths: the garment with its sleeves, in widths of the body."""

    scale: float
    left: int
    top: int
    widths: float


def try_on(
    person: Path,
    cloth: Path,
    out: Path,
    *,
    style: str | None = None,
    max_side: int = 2048,
    models: Path | None = None,
) -> Rendering:
    """Writes the preview (JPEG, WebP or PNG by the suffix of `out`), its longer side at most
    `max_side` pixels.

    `style` is free text. One word of _EASE and one of _TONE in it take effect; the parameters name
    them. `models`: the folder of the vision models, by which the person's pose is seen; without,
    the outline alone has to say where the torso is. Raises ValueError with the reason if person or
    garment can't be told from the backdrop, or don't fit together.
    """
    if not 256 <= max_side <= 4096:
        raise ValueError("max_side: 256 to 4096 pixels")
    garment, garment_shape = _garment(cloth, max_side)
    scene = _scene(person, max_side, models)
    words = set((style or "").lower().replace("-", " ").replace(",", " ").split())
    fit = next((word for word in _EASE if word in words), "regular")
    tone = next((word for word in _TONE if word in words), None)
    place = _place(scene, garment, _EASE[fit])
    gain = _light(scene.found, garment.found)
    cloth_layer, over = _laid(scene, garment, place)
    covered = _covered(scene, over)
    plausible.refuse_fit(place.widths, covered)
    result = _compose(scene, cloth_layer, over, gain)
    if tone:
        result = _toned(result, tone)
    width, height = picture.write(result, out, 90, _SOURCE_TYPE)
    evidence = (
        *plausible.garment_evidence(garment.found, garment_shape),
        *plausible.fit_evidence(place.widths, covered),
        *(scene.wearer.evidence() if scene.wearer else _person_evidence(scene)),
        *_evidence(scene, garment),
        *([wearer.worn(garment.photo, models)] if models else []),
    )
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
        "torso_box": _torso_box(scene),
        "garment_coverage": round(garment.found.coverage, 3),
        "turn": scene.wearer.turn if scene.wearer else 0.0,
        "vision": vision.recipe(*vision.SHA256) if models else None,
        "method": "flat overlay",
    }
    return Rendering(width, height, capped(evidence), evidence, parameters, _SOURCE_TYPE)


def _garment(path: Path, max_side: int) -> tuple[_Part, Outline]:
    photo = picture.open_upright(path, max_side)
    found = subject.find(photo)
    part = _Part(photo, found, body.of_garment(found.mask))
    shape = part.outline
    plausible.refuse_garment(found, shape)
    return part, shape


def _scene(path: Path, max_side: int, models: Path | None) -> _Part:
    photo = picture.flat(picture.open_upright(path, max_side))
    found = subject.find(photo)
    if models is None:
        part = _Part(photo, found, body.of_person(found.mask))
        plausible.refuse_person(found, part.outline, part.body)
        return part
    person = wearer.find(photo, models, found.mask.width, found.mask.height)
    return _Part(photo, _seen(found, person), person.body, person)


def _seen(found: Subject, person: Wearer) -> Subject:
    """Returns the subject with the person's own shape. Where the backdrop is even, its outline
    decides near the edge of the matte, since it has four times its resolution."""
    matte = person.pose.shape(found.mask.width, found.mask.height)
    if found.separation < plausible.CERTAIN:
        return replace(found, mask=(matte > 127).copy_memory())
    return replace(found, mask=((matte > 220) | (found.mask & (matte > 25))).copy_memory())


def _place(scene: _Part, garment: _Part, ease: float) -> _Placement:
    torso, cut = scene.body, garment.body
    to_scene, to_garment, height = scene.unit, garment.unit, scene.photo.height
    scale = torso.width * to_scene * ease / (cut.width * to_garment)
    # Sleeves begin where the arms do, so the shoulders may need a little more room than the body.
    shoulders = 1.04 * torso.span * to_scene / (cut.span * to_garment)
    scale = max(scale, min(shoulders, 1.18 * scale))
    # Limits the scale: a misjudged body must give neither a tiny garment nor a huge one.
    garment_height = garment.photo.height
    scale = max(0.15 * height, min(scale * garment_height, 2.2 * height)) / garment_height
    left = torso.centre * to_scene - cut.centre * to_garment * scale
    top = torso.shoulder * to_scene - cut.shoulder * to_garment * scale
    whole = garment.found.box[2] * garment.photo.width * scale
    return _Placement(scale, round(left), round(top), whole / (torso.width * to_scene))


def _light(scene_subject: Subject, garment_subject: Subject) -> float:
    """Returns the gain for the garment's brightness, from how much the backdrops differ: the
    nearest thing to a grey card."""

    def luminance(colour: tuple[float, float, float]) -> float:
        return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]

    if scene_subject.evenness < plausible.CERTAIN:
        return 1.0  # there is no backdrop to compare
    ratio = (luminance(scene_subject.background) + 20) / (
        luminance(garment_subject.background) + 20
    )
    return float(max(0.85, min(ratio**0.5, 1.1)))


def _laid(scene: _Part, garment: _Part, place: _Placement) -> tuple[pyvips.Image, pyvips.Image]:
    """Returns the garment's colours in the scene's frame, and where they are, 0..1."""
    photo = garment.photo
    cover = subject.alpha(garment.found.mask, photo.width, photo.height)
    layer = picture.flat(photo).bandjoin(cover).premultiply().resize(place.scale)
    width, height = scene.photo.width, scene.photo.height
    if scene.wearer and abs(scene.wearer.turn) >= 1:
        layer = _turned(layer, scene, garment, place)
    else:
        layer = framed(layer, place.left, place.top, width, height)
    placed = layer.unpremultiply().copy_memory()
    return placed[:3], placed[3] / 255


def _turned(layer: pyvips.Image, scene: _Part, garment: _Part, place: _Placement) -> pyvips.Image:
    """Returns the layer in the scene's frame, turned with the shoulders around their middle."""
    turn = radians(max(-_MOST_TURN, min(scene.wearer.turn if scene.wearer else 0, _MOST_TURN)))
    x = garment.body.centre * garment.unit * place.scale
    y = garment.body.shoulder * garment.unit * place.scale
    matrix = [cos(turn), -sin(turn), sin(turn), cos(turn)]
    return layer.affine(
        matrix,
        interpolate=pyvips.Interpolate.new("bicubic"),
        oarea=[0, 0, scene.photo.width, scene.photo.height],
        odx=place.left + x - matrix[0] * x - matrix[1] * y,
        ody=place.top + y - matrix[2] * x - matrix[3] * y,
    )


def _covered(scene: _Part, over: pyvips.Image) -> float:
    """Returns the share of the torso that lies behind the garment."""
    mask = scene.found.mask
    torso = scene.body
    left = max(0, round(torso.centre - torso.width / 2))
    right = min(mask.width, round(torso.centre + torso.width / 2))
    top, bottom = max(0, torso.shoulder), min(mask.height, torso.hem)
    if right <= left or bottom <= top:
        return 0.0
    box = (left, top, right - left, bottom - top)
    inside = mask.crop(*box)
    behind = over.crop(*(int(side * scene.unit) for side in box))
    behind = behind.subsample(*(max(1, int(scene.unit)),) * 2)
    ratio = (inside.width / behind.width, inside.height / behind.height)
    behind = behind.resize(ratio[0], vscale=ratio[1], kernel="nearest")
    behind = behind.embed(0, 0, inside.width, inside.height, extend="copy")
    return float((behind * inside).avg() / max(1e-6, inside.avg()))


def _compose(scene: _Part, cloth: pyvips.Image, over: pyvips.Image, gain: float) -> pyvips.Image:
    width, height = scene.photo.width, scene.photo.height
    person = subject.alpha(scene.found.mask, width, height) / 255
    if scene.body.neck is not None:
        over = over * (1 - _head(person, scene.body.neck * scene.unit))
    if scene.wearer and scene.wearer.arms:
        mask = scene.found.mask
        arms = scene.wearer.in_front(mask.width, mask.height)
        arms = arms.resize(width / mask.width, vscale=height / mask.height, kernel="linear")
        over = over * (1 - framed(arms, 0, 0, width, height) * person)
    base = scene.photo * (1 - _shadow(over) * person)
    even = scene.found.evenness >= plausible.CERTAIN
    lit = cloth * (_shading(scene.found, width, height) * gain if even else 1.0)
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


def _torso_box(scene: _Part) -> dict[str, float]:
    width, height, torso = scene.found.mask.width, scene.found.mask.height, scene.body
    return {
        "left": round((torso.centre - torso.width / 2) / width, 4),
        "top": round(torso.shoulder / height, 4),
        "width": round(torso.width / width, 4),
        "height": round((torso.hem - torso.shoulder) / height, 4),
    }


def _person_evidence(scene: _Part) -> tuple[Evidence, ...]:
    """Returns how certain the torso is if only the outline tells of it."""
    torso = scene.body
    return (
        Evidence(
            "person_separation",
            round(scene.found.separation, 3),
            0.15,
            "how even the person's backdrop is, and how clear the outline on it",
        ),
        Evidence(
            "torso",
            0.4 if torso.neck is None else ramp(abs(torso.lean), 0.6, 0.2),
            0.15,
            (
                "no neck found: the torso is an assumed part of the figure"
                if torso.neck is None
                else "neck and shoulders found from the outline, the body"
                f" {abs(torso.lean):.2f} of its width beside the neck"
            ),
        ),
    )


def _evidence(scene: _Part, garment: _Part) -> tuple[Evidence, ...]:
    photo = garment.photo
    apart = min(scene.body.apart, garment.body.apart)
    return (
        Evidence(
            "sides",
            round(ramp(apart, 0.0, 0.15) * 0.2 + 0.8, 3),
            0.05,
            f"arms stand apart in {scene.body.apart:.0%}, sleeves in {garment.body.apart:.0%} of"
            " the rows",
        ),
        Evidence(
            "resolution",
            ramp(max(photo.width, photo.height), 200, 1000),
            0.05,
            f"garment picture used at {photo.width} x {photo.height} px",
        ),
        Evidence(
            "method",
            0.85,
            0.05,
            "a flat overlay: the cloth doesn't fold around the body, and what is worn underneath"
            " may show beside it",
        ),
    )
