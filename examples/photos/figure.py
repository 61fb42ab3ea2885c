"""A linen-covered tailor's figure from head to hips, on a steel stand, for trying garments on."""

from examples.photos.cloth import (
    Cloth,
    Fold,
    Frame,
    Image,
    Piece,
    laid,
    mirrored,
    painted,
    rendered,
)

LINEN = Cloth((214, 202, 180), weave="linen", relief=0.8, sheen=0.02, thread=(176, 160, 134))
TAPE = Cloth((52, 50, 48), weave="lining", relief=0.4, thread=(90, 86, 80))

TORSO = (
    "M 5.4 -11 C 5.2 -6 5.6 -3 8.4 -0.6 C 12 1.4 16.5 2.2 19.2 5.2 C 20.6 9 18.6 14 18 19 C 18.4 26"
    " 15.4 34 14.6 42 C 14.8 49 18 54 18.4 60 C 18.4 63 18 65 17.4 66.5 C 10 69 -10 69 -17.4 66.5 C"
    " -18 65 -18.4 63 -18.4 60 C -18 54 -14.8 49 -14.6 42 C -15.4 34 -18.4 26 -18 19 C -18.6 14"
    " -20.6 9 -19.2 5.2 C -16.5 2.2 -12 1.4 -8.4 -0.6 C -5.6 -3 -5.2 -6 -5.4 -11 Z"
)
HEAD = (
    "M 0 -30 C 5.6 -30 8.4 -26 8.2 -20.6 C 8 -14.6 4.8 -7.8 0 -7.4 "
    "C -4.8 -7.8 -8 -14.6 -8.2 -20.6 C -8.4 -26 -5.6 -30 0 -30 Z"
)
ARM = (
    "M 18.4 4.2 C 22 5 24.2 9 24.4 15 C 24.8 24 26 30 26.6 36 C 27.6 44 27.8 51 27.6 59 C 26.4 59.9"
    " 24.6 60 23.4 59.6 C 22.8 52 21.4 44 20.8 37 C 20.2 30 18.8 24 18 18.6 C 17.2 13 17.4 7.6 18.4"
    " 4.2 Z"
)
OUTLINES = (TORSO, HEAD, ARM, mirrored(ARM), "M -1.4 60 L 1.4 60 L 1.4 90 L -1.4 90 Z")


def stand(canvas: Image, frame: Frame) -> Image:
    """Draws a steel pole, which runs out of the picture below, under a turned wooden base."""
    pole = "M -1.4 64 L 1.4 64 L 1.4 84 L -1.4 84 Z"
    steel = f"""<defs><linearGradient id="steel">
      <stop offset="0" stop-color="#5d6063"/><stop offset="0.3" stop-color="#e2e4e5"/>
      <stop offset="0.48" stop-color="#a9acae"/><stop offset="0.85" stop-color="#54575a"/>
      <stop offset="1" stop-color="#83868a"/>
      </linearGradient></defs><path d="{pole}" fill="url(#steel)"/>"""
    canvas = laid(canvas, painted(frame, pole, steel), 0.1)
    disc = "M -16.6 66 C -10 68.6 10 68.6 16.6 66 L 16.2 68.2 C 10 71.2 -10 71.2 -16.2 68.2 Z"
    rings = "".join(
        f'<path d="M -16.4 {66.5 + k} C -10 {69.2 + k} 10 {69.2 + k} 16.4 {66.5 + k}" fill="none"'
        ' stroke="#2c1a0e" stroke-opacity="0.35" stroke-width="0.05"/>'
        for k in (0.25, 0.42, 0.7, 0.95, 1.3)
    )
    wood = f"""<defs><linearGradient id="wood">
      <stop offset="0" stop-color="#664a35"/><stop offset="0.28" stop-color="#94755a"/>
      <stop offset="0.6" stop-color="#705440"/><stop offset="1" stop-color="#43301f"/>
      </linearGradient></defs><path d="{disc}" fill="url(#wood)"/>{rings}"""
    return laid(canvas, painted(frame, disc, wood), 0.5)


def wrist(canvas: Image, frame: Frame, side: int) -> Image:
    """Draws the turned cap that closes an arm."""
    x = side * 25.5
    cap = f"M {x - 2.3} 59 L {x + 2.3} 61"
    body = f"""<defs><radialGradient id="knob" cx="0.38" cy="0.2" r="0.9">
      <stop offset="0" stop-color="#a5866a"/>
      <stop offset="0.6" stop-color="#705440"/><stop offset="1" stop-color="#3c2b1d"/>
      </radialGradient></defs>
      <path d="M {x - 2.1} 59.4 C {x - 1} 60 {x + 1} 60 {x + 2.1} 59.2 L {x + 1.9} 60.4
      C {x + 1} 61.3 {x - 1} 61.3 {x - 1.9} 60.6 Z"
      fill="url(#knob)"/>"""
    return laid(canvas, painted(frame, cap, body), 0.15)


def figure(canvas: Image, frame: Frame) -> Image:
    """Draws the figure from the front."""
    princess = "M 13.4 3 C 12.6 12 9.2 20 8.6 28 C 8 36 7.4 40 7.5 44 C 8 52 9.6 60 9.8 68"
    chest = tuple(Fold(s * 2.5, 17.5, s * 15, 17, 4.5, 0.35, 0) for s in (-1, 1))
    hips = (Fold(0, 46, 0, 62, 5, 0.35, 0), Fold(0, 10, 0, 28, 1.6, -0.25, 0))
    canvas = stand(canvas, frame)
    parts = [
        Piece(
            TORSO,
            LINEN,
            seams=("M 0 -10 L 0 68.5", princess, mirrored(princess)),
            stitches=("M 0.3 -10 L 0.3 68.5", "M -5.5 -3.2 C -2 -1.6 2 -1.6 5.5 -3.2"),
            folds=chest + hips,
            puff=(7.5, 1.5),
            slack=0.05,
            lift=0.3,
            seed=411,
        ),
        Piece(
            "M -14.5 42 C -8 43.6 8 43.6 14.5 42 L 14.55 43 C 8 44.6 -8 44.6 -14.55 43 Z",
            TAPE,
            form=TORSO,
            puff=(7.5, 1.5),
            slack=0,
            lift=0.05,
            edge=0.04,
            seed=421,
        ),
    ]
    for s, turn in ((1, lambda d: d), (-1, mirrored)):
        parts.append(
            Piece(
                turn(ARM),
                LINEN,
                grain=-4 * s,
                seams=(turn("M 20.7 36.4 C 22.6 37.2 25 37 26.7 36.2"),),
                stitches=(turn("M 18.9 5 C 18 10 18.2 14 18.6 18.4"),),
                puff=(3.4, 1.5),
                slack=0.04,
                lift=0.5,
                seed=431 + s,
            )
        )
    parts.append(
        Piece(
            HEAD,
            LINEN,
            seams=("M 0 -30 L 0 -7.4",),
            stitches=("M 0.3 -29.9 L 0.3 -7.4",),
            puff=(5.0, 1.4),
            slack=0.03,
            lift=0.9,
            seed=441,
        )
    )
    for part in parts:
        canvas = laid(canvas, rendered(frame, part), part.lift)
    return wrist(wrist(canvas, frame, -1), frame, 1)
