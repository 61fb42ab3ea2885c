"""Cuts a detail out of a photograph, at the photograph's own resolution."""

from collections.abc import Sequence
from pathlib import Path

import pyvips

from services.conversions.local import faces, network, picture, subject, vision
from services.conversions.local.detections import Detection
from services.conversions.local.evidence import Evidence, Rendering, capped, ramp
from shared.imaging.decode import orientation

_SOURCE_TYPE = "algorithmicallyEnhanced"  # the photograph itself, cut and converted
_LOOK_SIDE = 800


def close_up(
    image: Path,
    out: Path,
    *,
    at: tuple[float, float] | None = None,
    size: int = 1600,
    models: Path | None = None,
) -> Rendering:
    """Writes a square of `size` pixels around `at` (fractions of the upright picture), or around
    the point that draws attention. With the folder of the vision models that point is not on a
    face.

    Never enlarges: a smaller picture gives a smaller crop. At the edges the square is moved
    inwards.
    """
    if not 64 <= size <= 8192:
        raise ValueError("size: 64 to 8192 pixels")
    if at is not None and not all(0 <= fraction <= 1 for fraction in at):
        raise ValueError("at: two fractions of the picture, 0..1")
    width, height = picture.size_of(image)
    side = min(size, width, height)
    small = picture.flat(picture.open_upright(image, _LOOK_SIDE))
    seen = faces.find(small, models) if models else []
    network.release()
    point = at or _attention(small, side / max(width, height), seen)
    left = round(min(max(point[0] * width - side / 2, 0), width - side))
    top = round(min(max(point[1] * height - side / 2, 0), height - side))
    crop = _crop(image, left, top, side).copy_memory()
    picture.write(crop, out, 92, _SOURCE_TYPE)
    evidence = _evidence(crop, given=at is not None)
    if models:
        box = (left / width, top / height, side / width, side / height)
        evidence = (*evidence, _faces(seen, box, given=at is not None))
    parameters = {
        "at": [round(point[0], 4), round(point[1], 4)],
        "given": at is not None,
        "size": side,
        "vision": vision.recipe(vision.DETECT_FACES) if models else None,
    }
    return Rendering(
        side,
        side,
        capped(evidence),
        evidence,
        {**parameters, "left": left, "top": top},
        _SOURCE_TYPE,
    )


def _attention(small: pyvips.Image, share: float, seen: Sequence[Detection]) -> tuple[float, float]:
    """Returns the point of the subject that draws attention. The backdrop is painted over, since
    the subject's edge would always win, and so are faces, with a margin that keeps them out of the
    crop if there is room."""
    found = subject.find(small)
    inside = subject.alpha(found.mask, small.width, small.height)
    for margin in (share * max(small.width, small.height) / 2, 0.0) if seen else ():
        without = _without(inside, seen, margin)
        if without.max() > 0:
            inside = without
            break
    inside = inside.gaussblur(6).copy_memory()
    weight = inside.avg()
    mean = [(small[band] * inside).avg() / weight for band in range(3)]
    subject_only = inside.ifthenelse(small, (small * 0 + mean).cast("uchar"), blend=True)
    side = max(16, min(round(share * max(small.width, small.height)), small.width, small.height))
    _, drawn = subject_only.smartcrop(
        side, side, interesting="attention", attention_x=True, attention_y=True
    )
    return drawn["attention_x"] / small.width, drawn["attention_y"] / small.height


def _without(inside: pyvips.Image, seen: Sequence[Detection], margin: float) -> pyvips.Image:
    """Returns the mask without the faces and so many pixels around them, hair and chin included."""
    for face in seen:
        left, top, width, height = face.box
        x, y = width * inside.width, height * inside.height
        area = (
            round(left * inside.width - 0.4 * x - margin),
            round(top * inside.height - 0.6 * y - margin),
            round(1.8 * x + 2 * margin),
            round(1.9 * y + 2 * margin),
        )
        inside = inside.draw_rect(0, *area, fill=True)
    return inside


def _faces(
    seen: Sequence[Detection], crop: tuple[float, float, float, float], *, given: bool
) -> Evidence:
    """Returns how much of a face is in the crop, if any is."""
    shown = [
        face
        for face in seen
        if crop[0] < face.box[0] + face.box[2] / 2 < crop[0] + crop[2]
        and crop[1] < face.box[1] + face.box[3] / 2 < crop[1] + crop[3]
    ]
    note = f"faces in the photograph: {len(seen)}, in the crop: {len(shown)}"
    return Evidence("faces", 1.0 if given or not shown else 0.3, 0.2, note)


def _crop(path: Path, left: int, top: int, side: int) -> pyvips.Image:
    """Returns the square of the upright picture. It is cut from the stored pixels first, so that
    only the crop is turned and converted."""
    stored = picture.open_full(path)
    turn = orientation(stored)
    width, height = stored.width, stored.height
    if turn >= 5:  # stored on its side: orientations 1 to 4 only mirror or turn by 180 degrees
        left, top = top, left
    if turn in (2, 3, 7, 8):
        left = width - left - side
    if turn in (3, 4, 6, 7):
        top = height - top - side
    crop = stored.crop(left, top, side, side).copy_memory().autorot()
    if crop.get_typeof("icc-profile-data"):
        crop = crop.icc_transform("srgb", embedded=True, intent="relative")
    return picture.flat(picture.to_srgb(crop))


def _evidence(crop: pyvips.Image, *, given: bool) -> tuple[Evidence, ...]:
    side, spread = crop.width, float(crop.colourspace("b-w").sobel().percent(99))
    return (
        Evidence(
            "place",
            1.0 if given else 0.45,
            0.4,
            (
                "the point was given"
                if given
                else "chosen by attention: contrast and colour, not meaning"
            ),
        ),
        Evidence(
            "resolution",
            0.5 + 0.5 * ramp(side, 300, 1200),
            0.3,
            f"{side} x {side} px, none of them enlarged",
        ),
        Evidence(
            "detail",
            ramp(spread, 4, 40),
            0.3,
            f"the strongest edges in the crop measure {spread:.0f} of 255",
        ),
    )
