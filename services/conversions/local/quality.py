"""How good a photograph is for reading a product from it: sharp, well lit, large, and set apart from its backdrop."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.conversions.local import elements, picture, subject
from services.conversions.local.evidence import Evidence, ramp
from shared.imaging.model import Colour

_SIDE = 1600
MEASURES = ("sharpness", "exposure", "resolution", "separation")


@dataclass(frozen=True)
class Quality:
    """Scores 0..1 of one picture with the measured values behind them.

    width, height: pixels of the stored picture, upright. detail: `Measures.sharpness` of the subject's box.
    lightness: 0..1, mean over the subject. clipped: share 0..1 of the subject that is pure black or white.
    colours: of the subject, largest share first.
    """

    view: str
    width: int
    height: int
    detail: float
    lightness: float
    clipped: float
    coverage: float
    sharpness: float
    exposure: float
    resolution: float
    separation: float
    colours: tuple[Colour, ...]

    @property
    def score(self) -> float:
        """One figure for the picture: sharpness counts double."""
        return round((2 * self.sharpness + self.exposure + self.resolution + self.separation) / 5, 3)


def assess(view: str, path: Path) -> Quality:
    """Measures one photograph of a product."""
    width, height = picture.size_of(path)
    photo = picture.open_upright(path, _SIDE)
    cut = subject.find(photo)
    measures = elements.subject_measures(photo, cut)
    clipped = min(1.0, measures.clipped_shadows + measures.clipped_highlights)
    lit = min(ramp(measures.exposure, 0.03, 0.14), ramp(measures.exposure, 0.995, 0.93))
    return Quality(
        view=view,
        width=width,
        height=height,
        detail=measures.sharpness,
        lightness=measures.exposure,
        clipped=clipped,
        coverage=round(cut.coverage, 3),
        sharpness=ramp(measures.sharpness, 0.06, 0.34),
        exposure=round(lit * (1 - clipped), 3),
        resolution=ramp(max(width, height), 400, 1600),
        separation=round(cut.separation, 3),
        colours=measures.colours,
    )


def evidence(pictures: Sequence[Quality], weights: Sequence[float]) -> tuple[Evidence, ...]:
    """The mean of each measure over all pictures, with the weights for MEASURES; zero where there is no picture."""
    notes = {
        "sharpness": lambda p: f"{p.view}: detail {p.detail:.2f}",
        "exposure": lambda p: f"{p.view}: lightness {p.lightness:.2f}, {p.clipped:.0%} clipped",
        "resolution": lambda p: f"{p.view}: {p.width} x {p.height} px",
        "separation": lambda p: f"{p.view}: subject fills {p.coverage:.0%}",
    }
    return tuple(
        Evidence(
            name,
            round(sum(getattr(p, name) for p in pictures) / len(pictures), 3) if pictures else 0.0,
            weight,
            "; ".join(notes[name](p) for p in pictures) if pictures else "no picture was given",
        )
        for name, weight in zip(MEASURES, weights, strict=True)
    )
