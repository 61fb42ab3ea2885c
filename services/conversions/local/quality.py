"""Scores how well a product can be read from a photograph: sharp, well lit, large, and set apart
from its backdrop."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.conversions.local.evidence import Evidence
from services.conversions.local.reading import Code
from shared.imaging.model import Colour

MEASURES = ("sharpness", "exposure", "resolution", "separation")


@dataclass(frozen=True)
class Quality:
    """Scores 0..1 of one picture with the measured values behind them.

    width, height: pixels of the stored picture, upright. detail: `Measures.sharpness` of the
    subject's box. lightness: 0..1, mean over the subject. clipped: share 0..1 of the subject that
    is pure black or white. colours: of the subject, largest share first.
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
        """Returns one figure for the picture, in which sharpness counts double."""
        return round(
            (2 * self.sharpness + self.exposure + self.resolution + self.separation) / 5, 3
        )


@dataclass(frozen=True)
class Assessed:
    """What one photograph shows, whatever the product is."""

    quality: Quality
    codes: tuple[Code, ...]


def evidence(pictures: Sequence[Quality], weights: Sequence[float]) -> tuple[Evidence, ...]:
    """Returns the mean of each measure over all pictures, with the weights for MEASURES; zero if
    there is no picture."""
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
