"""Says whether an outline can be that of a garment or of a person, and whether a garment lies where
it belongs: measures with which a wrong cut-out shows, and the refusals that follow from them.

A refusal is a ValueError with the reason and what to do next. What is doubtful and not refused
comes back as evidence, which caps the confidence.
"""

from dataclasses import dataclass

import pyvips

from services.conversions.local import regions, subject
from services.conversions.local.body import Body
from services.conversions.local.evidence import Evidence, ramp
from services.conversions.local.subject import Subject

_NEXT_GARMENT = (
    "Send the garment alone, laid flat or on a stand, on an even backdrop of another colour, or cut"
    " out as a PNG with a transparent backdrop."
)
_NEXT_PERSON = (
    "Send one person who stands upright and faces the camera, head and hips in the picture, before"
    " an even backdrop."
)
CERTAIN = 0.3
"""Least separation with which a cut-out is used at all."""
_WIDEST = 3.2
"""Widths of the body that a garment with its sleeves may measure. Coats laid flat with their
sleeves spread have up to 2.4."""


@dataclass(frozen=True)
class Outline:
    """Measures of a mask, each 0..1.

    solidity: its share of its convex hull. trunk: the body's share of its width. edges: the share
    of the picture's left, right and upper edge that it touches.
    """

    solidity: float
    trunk: float
    edges: float


def outline(mask: pyvips.Image, body: Body) -> Outline:
    """Measures a mask that isn't empty."""
    _, _, width, _ = regions.bounds(mask)
    area = mask.avg() / 255 * mask.width * mask.height
    strips = [
        mask.crop(0, 0, mask.width, 1),
        mask.crop(0, 0, 1, mask.height),
        mask.crop(mask.width - 1, 0, 1, mask.height),
    ]
    touched = sum(strip.avg() / 255 * strip.width * strip.height for strip in strips)
    return Outline(
        min(1.0, area / max(1.0, _hull_area(mask))),
        body.width / max(1, width),
        touched / (mask.width + 2 * mask.height),
    )


def refuse_garment(found: Subject, shape: Outline) -> None:
    """Raises ValueError if the cut-out can't be a whole garment."""
    reason = (
        _unclear(found)
        or (
            shape.edges > 0.3 and f"what stands out touches {shape.edges:.0%} of the picture's edge"
        )
        or (shape.solidity < 0.4 and "what stands out is no closed shape, but parts of one")
        or (
            shape.trunk < 0.22
            and f"what stands out has no body: it is {shape.trunk:.0%} as wide as the whole"
        )
    )
    if reason:
        raise ValueError(f"no garment could be told from its backdrop: {reason}. {_NEXT_GARMENT}")


def refuse_person(found: Subject, shape: Outline, torso: Body) -> None:
    """Raises ValueError if the outline can't be that of a person who stands and faces the
    camera."""
    reason = (
        _unclear(found)
        or (shape.solidity < 0.5 and "what stands out is more than a person, or less")
        or (
            abs(torso.lean) > 0.5
            and f"the body lies {abs(torso.lean):.1f} times its own width beside the neck"
        )
    )
    if reason:
        raise ValueError(f"no person could be told from the backdrop: {reason}. {_NEXT_PERSON}")


def refuse_fit(widths: float, covered: float) -> None:
    """Raises ValueError if the placed garment is no garment on that body. `widths`: the garment in
    widths of the body. `covered`: the share of the torso behind it."""
    if widths > _WIDEST:
        raise ValueError(
            f"the garment would be {widths:.1f} times as wide as the body, so garment or body was"
            f" misjudged. {_NEXT_GARMENT} {_NEXT_PERSON}"
        )
    if covered < 0.4:
        raise ValueError(
            f"the garment would cover {covered:.0%} of the torso, so garment or body was misjudged,"
            f" or it is no garment for the upper body. {_NEXT_GARMENT} {_NEXT_PERSON}"
        )


def garment_evidence(found: Subject, shape: Outline) -> tuple[Evidence, ...]:
    """Returns how certain it is that a whole garment was cut out."""
    coverage = found.coverage
    size = ramp(coverage, 0.01, 0.08) if coverage < 0.7 else ramp(coverage, 0.97, 0.8)
    return (
        Evidence(
            "garment_separation",
            round(found.separation, 3),
            0.15,
            "how even the garment's backdrop is, and how clear the outline on it",
        ),
        Evidence(
            "garment_outline",
            min(
                ramp(shape.solidity, 0.3, 0.6),
                ramp(shape.trunk, 0.15, 0.35),
                ramp(shape.edges, 0.4, 0.1),
                size,
            ),
            0.15,
            f"the garment fills {coverage:.0%} of its picture and {shape.solidity:.0%} of its hull,"
            f" and its body is {shape.trunk:.0%} as wide as the whole",
        ),
    )


def fit_evidence(widths: float, covered: float) -> tuple[Evidence, ...]:
    """Returns how well the placed garment and the torso agree; see `refuse_fit`."""
    return (
        Evidence(
            "overlap",
            ramp(covered, 0.4, 0.85),
            0.15,
            f"the garment covers {covered:.0%} of the torso",
        ),
        Evidence(
            "width",
            min(ramp(widths, 0.7, 1.0), ramp(widths, _WIDEST, 2.6)),
            0.1,
            f"the garment with its sleeves is {widths:.2f} times as wide as the body",
        ),
    )


def _unclear(found: Subject) -> str | None:
    if found.evenness < CERTAIN:
        return "the picture's border is not one even backdrop"
    if found.separation == 0:
        return "nothing stands out from the backdrop, or nothing of the backdrop shows"
    return "the outline is too faint" if found.separation < CERTAIN else None


def _hull_area(mask: pyvips.Image) -> float:
    """Returns the area of the convex hull, in pixels."""
    points = sorted(
        point
        for row, runs in enumerate(subject.row_runs(mask))
        if runs
        for point in ((runs[0][0], row), (runs[-1][1], row))
    )
    hull = _half(points)[:-1] + _half(points[::-1])[:-1]
    return (
        abs(
            sum(
                one[0] * other[1] - other[0] * one[1]
                for one, other in zip(hull, hull[1:] + hull[:1], strict=True)
            )
        )
        / 2
    )


def _half(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chain: list[tuple[int, int]] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(one: tuple[int, int], two: tuple[int, int], three: tuple[int, int]) -> int:
    return (two[0] - one[0]) * (three[1] - one[1]) - (two[1] - one[1]) * (three[0] - one[0])
