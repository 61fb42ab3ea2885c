"""The pattern of the example garment, a canvas field jacket, as seen from the front, the back and
the left side."""

import itertools
import random

from examples.photos.cloth import Cloth, Fold, Frame, Image, Piece, laid, mirrored, rendered
from examples.photos.trims import buttoned, buttonhole, label

SHELL = Cloth((168, 132, 84))
CORD = Cloth((92, 62, 42), weave="corduroy", relief=0.55, sheen=0.05, thread=(128, 94, 64))
LINING = Cloth((74, 82, 84), weave="lining", relief=0.3, thread=(120, 126, 126))

SLEEVE = (
    "M 22.2 4.9 C 25.2 6.2 28.3 10.6 30 16 C 32.6 27 36.6 45 38.6 65.3 L 27.2 66.4 "
    "C 27.6 52 28.4 38 26.4 25.4 C 21.6 22 20.6 12 22.2 4.9 Z"
)
CUFF = (
    "M 38.05 58.9 L 38.75 65.5 C 35 66.5 31 66.9 27.0 66.6 L 27.1 59.9 C 31 60.3 35 59.8 38.05"
    " 58.9 Z"
)
CUFF_LINES = ("M 38 59.6 C 35 60.5 31 60.9 27.2 60.6", "M 38.6 64.9 C 35 65.9 31 66.2 27.1 66")
FRONT = (
    "M 8 0 L 22.5 5 C 20.8 12 21 21 26.5 25 C 25.6 38 25.4 52 26 70.2 C 18 70.9 8 71.2 -2 71.2 "
    "L -2 9 C 4 8.5 7.5 5 8 0 Z"
)
FRONT_UNDER = (
    "M 8 0 L 22.5 5 C 20.8 12 21 21 26.5 25 C 25.6 38 25.4 52 26 70.2 C 18 70.9 8 71.1 0 71.1 L 0 9"
    " C 4 8.5 7.5 5 8 0 Z"
)
BACK = (
    "M 8 0 L 22.5 5 C 20.9 12 21.2 21 26.5 25 C 25.6 38 25.4 52 26 70.2 C 16 71 -16 71 -26 70.2 "
    "C -25.4 52 -25.6 38 -26.5 25 C -21.2 21 -20.9 12 -22.5 5 L -8 0 C -4 1.6 4 1.6 8 0 Z"
)


BACK_COLLAR = (
    "M -7.6 -2.7 C -4 -4 4 -4 7.6 -2.7 C 9.8 -0.9 11.2 1.4 11.6 3.9 C 6 6.2 -6 6.2 -11.6 3.9 "
    "C -11.2 1.4 -9.8 -0.9 -7.6 -2.7 Z"
)


def body_folds(seed: int, side: int) -> tuple[Fold, ...]:
    """Returns drag lines from the armpit to the chest, and soft pleats that fall to the hem; side
    is 1 or -1."""
    rng = random.Random(seed)
    folds = []
    for i in range(5):
        y = 25.5 + i * 2.1 + rng.uniform(-0.5, 0.5)
        reach = rng.uniform(6, 12)
        folds.append(
            Fold(
                side * 25.8,
                y,
                side * (25.8 - reach),
                y - 3 + reach * 0.55 + i,
                rng.uniform(0.6, 1.3),
                rng.choice((-0.5, 0.45)),
                side * rng.uniform(0.3, 1.0),
            )
        )
    for _ in range(7):
        x, y = side * rng.uniform(3, 24), rng.uniform(32, 46)
        folds.append(
            Fold(
                x,
                y,
                x + rng.uniform(-2.5, 2.5),
                y + rng.uniform(18, 30),
                rng.uniform(1.5, 2.6),
                rng.uniform(-0.6, 0.6),
                rng.uniform(-1, 1),
            )
        )
    for _ in range(6):
        y = rng.uniform(38, 56)
        folds.append(
            Fold(
                side * 25.5,
                y,
                side * rng.uniform(16, 21),
                y + rng.uniform(-3, 3),
                rng.uniform(0.5, 1.2),
                rng.uniform(-0.5, 0.4),
                rng.uniform(-0.6, 0.6),
            )
        )
    return tuple(folds)


FRONT_EDGES = ((14, 22.0, 29.4), (25, 26.3, 31.8), (38, 27.9, 34.6), (59, 27.3, 38.1))
SIDE_EDGES = (
    (14, -8.4, 8.8),
    (26, -9.8, 9.4),
    (40, -10.9, 6.4),
    (52, -11.7, 2.6),
    (60, -12.3, 0.2),
)


def between(edges: tuple[tuple[float, float, float], ...], y: float) -> tuple[float, float]:
    """Returns where a sleeve begins and ends at height y, from a table of (y, left, right)."""
    for (y0, a0, b0), (y1, a1, b1) in itertools.pairwise(edges):
        if y <= y1:
            t = (y - y0) / (y1 - y0)
            return a0 + (a1 - a0) * t, b0 + (b1 - b0) * t
    return edges[-1][1:]


def sleeve_folds(
    seed: int, edges: tuple[tuple[float, float, float], ...], side: int = 1
) -> tuple[Fold, ...]:
    """Returns creases across a sleeve: a few under the cap, many at the elbow, stacked ones above
    the cuff."""
    rng = random.Random(seed)
    folds = []
    for low, high, count in ((16, 28, 5), (31, 45, 9), (47, 59, 8)):
        for i in range(count):
            y = low + (high - low) * (i + rng.uniform(0.1, 0.9)) / count
            inner, outer = between(edges, y)
            span = outer - inner
            from_inner = rng.random() < 0.6
            lean = (
                min(4.0, rng.uniform(0.15, 0.5) * span)
                * (1 if from_inner else -1)
                * rng.choice((1, 1, 1, 1, -0.5))
            )
            if from_inner:
                a, b = inner - 1, inner + span * rng.uniform(0.55, 0.95)
            else:
                a, b = outer + 1, outer - span * rng.uniform(0.55, 0.95)
            wide, rise, bend = rng.uniform(0.5, 1.4), rng.uniform(0.3, 0.75), rng.uniform(-1, 1)
            folds.append(Fold(side * a, y, side * b, y + lean, wide, -rise, bend))
            gap = wide * 1.1 + 0.5  # cloth pushed out of a crease stands up beside it
            folds.append(
                Fold(
                    side * a, y - gap, side * b, y + lean - gap * 0.6, wide * 1.3, rise * 0.8, bend
                )
            )
    return tuple(folds)


def sleeve(side: int, seed: int) -> list[Piece]:
    """Returns a sleeve and its cuff; side is 1 (right in the picture) or -1."""
    turn = (lambda d: d) if side == 1 else mirrored
    armhole = turn("M 23.1 5.2 C 21.4 12 22.2 21.4 26.7 24.9")
    return [
        Piece(
            turn(SLEEVE),
            SHELL,
            grain=8 * side,
            stitches=(armhole,),
            folds=sleeve_folds(seed, FRONT_EDGES, side),
            puff=(4.6, 0.7),
            slack=0.42,
            lift=0.34,
            seed=seed,
        ),
        Piece(
            turn(CUFF),
            SHELL,
            grain=4 * side,
            stitches=tuple(map(turn, CUFF_LINES)),
            puff=(2.6, 0.5),
            slack=0.16,
            lift=0.22,
            seed=seed + 20,
        ),
    ]


def pocket(
    x0: float, x1: float, y0: float, y1: float, flap: float, side: int, seed: int
) -> list[Piece]:
    """Returns a patch pocket with clipped corners under a pointed flap."""
    turn = (lambda d: d) if side == 1 else mirrored
    mid, c = (x0 + x1) / 2, 1.6
    i = 0.35

    def bag(k: float) -> str:
        return (
            f"M {x0 + k} {y0} L {x0 + k} {y1 - c} L {x0 + c + k * 0.4} {y1 - k} L"
            f" {x1 - c - k * 0.4} {y1 - k} L {x1 - k} {y1 - c} L {x1 - k} {y0}"
        )

    def lid(k: float) -> str:
        return (
            f"M {x0 - 0.2 + k} {y0 - 0.9} L {x0 - 0.2 + k} {y0 + flap - 1.2 - k * 0.9} L {mid}"
            f" {y0 + flap - k} L {x1 + 0.2 - k} {y0 + flap - 1.2 - k * 0.9} L {x1 + 0.2 - k}"
            f" {y0 - 0.9}"
        )

    top = f"M {x0 - 0.2} {y0 - 0.5} L {x1 + 0.2} {y0 - 0.5}"
    return [
        Piece(
            turn(bag(0) + " Z"),
            SHELL,
            stitches=(turn(bag(i)), turn(bag(i + 0.55))),
            form=BACK,
            puff=(9.0, 0.9),
            slack=0.22,
            lift=0.2,
            seed=seed,
        ),
        Piece(
            turn(lid(0) + " Z"),
            SHELL,
            stitches=(turn(lid(i)), turn(top)),
            form=BACK,
            puff=(9.0, 0.9),
            slack=0.16,
            lift=0.3,
            seed=seed + 1,
        ),
    ]


def assembled(canvas: Image, frame: Frame, pieces: list[Piece]) -> Image:
    for piece in pieces:
        canvas = laid(canvas, rendered(frame, piece), piece.lift)
    return canvas


COLLAR_LEAF = (
    "M 7.3 -2.7 C 9.2 -1.4 10.9 0.8 11.4 3.4 C 10.4 7 9 11 8.1 14.4 C 5 12.6 2.2 10.4 0.3 8.3 C 4"
    " 6.4 6.6 2 7.3 -2.7 Z"
)
COLLAR_LINE = "M 11 3.5 C 10 7 8.7 10.6 7.85 13.8 C 5 12.2 2.6 10.2 0.8 8.4"


def front(canvas: Image, frame: Frame) -> Image:
    """Draws the jacket from the front, buttoned."""
    inside = "M -7.6 -2.6 C -4 -3.9 4 -3.9 7.6 -2.6 L 8.4 4 C 6 8 3 10 0 10.5 C -3 10 -6 8 -8.4 4 Z"
    stand = "M -7.6 -2.7 C -4 -4 4 -4 7.6 -2.7 L 8 0.4 C 4 2.1 -4 2.1 -8 0.4 Z"
    yoke = "M 6.2 4.6 C 11 6.2 17 8.2 21.3 9.6"
    side = ("M 24.6 26 C 24.1 40 24 54 24.6 69.8",)
    hem = ("M 25.9 68.2 C 18 68.9 8 69.2 -1.9 69.2",)
    facing = ("M -1.4 9.3 L -1.4 70.9", "M 2.6 9.3 L 2.6 71")
    yoke_line = "M 6.2 5.2 C 11 6.8 17 8.8 21.2 10.2"
    canvas = assembled(
        canvas,
        frame,
        [
            Piece(inside, LINING, puff=(3.0, -0.4), slack=0.15, lift=0.1, seed=3),
            Piece(
                stand,
                CORD,
                grain=90,
                seams=("M -8 0.4 C -4 2.1 4 2.1 8 0.4",),
                puff=(2.0, 0.3),
                slack=0.1,
                lift=0.2,
                seed=4,
            ),
        ],
    )
    canvas = label(canvas, frame, 0, 3.5)
    canvas = assembled(
        canvas,
        frame,
        [
            Piece(
                mirrored(FRONT_UNDER),
                SHELL,
                seams=(mirrored(yoke),),
                stitches=tuple(map(mirrored, (yoke_line, *side, *hem))),
                folds=body_folds(31, -1),
                form=BACK,
                puff=(9.0, 0.9),
                slack=0.75,
                lift=0.3,
                seed=31,
            ),
            Piece(
                FRONT,
                SHELL,
                seams=(yoke,),
                stitches=(yoke_line, *side, *hem, *facing),
                folds=body_folds(47, 1),
                form=BACK,
                puff=(9.0, 0.9),
                slack=0.75,
                lift=0.32,
                seed=47,
            ),
            *sleeve(-1, 61),
            *sleeve(1, 83),
            *pocket(6.2, 18.8, 21.5, 35.5, 5.8, 1, 101),
            *pocket(6.2, 18.8, 21.5, 35.5, 5.8, -1, 111),
            *pocket(5.2, 22.2, 45, 64.2, 6.8, 1, 121),
            *pocket(5.2, 22.2, 45, 64.2, 6.8, -1, 131),
            Piece(
                mirrored(COLLAR_LEAF),
                CORD,
                grain=118,
                stitches=(mirrored(COLLAR_LINE),),
                puff=(1.8, 0.5),
                slack=0.16,
                lift=0.5,
                seed=141,
            ),
            Piece(
                COLLAR_LEAF,
                CORD,
                grain=62,
                stitches=(COLLAR_LINE,),
                puff=(1.8, 0.5),
                slack=0.16,
                lift=0.5,
                seed=151,
            ),
        ],
    )
    for i, y in enumerate((12.5, 24.5, 36.5, 48.5, 60.5)):
        canvas = buttonhole(canvas, frame, -0.3, y, 2.2)
        canvas = buttoned(canvas, frame, 0.2, y, 0.95, i * 23)
    for s in (-1, 1):
        for x, y in ((12.5, 25.6), (13.7, 50.0)):
            canvas = buttonhole(canvas, frame, s * x, y - 0.7, 1.9, upright=True)
            canvas = buttoned(canvas, frame, s * x, y, 0.75, s * 31)
        canvas = buttoned(canvas, frame, s * 29.0, 63.3, 0.75, s * 12)
    return canvas


def back(canvas: Image, frame: Frame) -> Image:
    """Draws the jacket from the back: yoke, centre seam, two action pleats."""
    yoke = "M 22 14.4 C 14 15.8 -14 15.8 -22 14.4"
    pleats = tuple(
        f"M {s * 17.5} 15.4 C {s * 17.2} 28 {s * 16.8} 36 {s * 16.6} 46" for s in (-1, 1)
    )
    stitches = (
        "M 21.9 15 C 14 16.4 -14 16.4 -21.9 15",
        "M 21.9 15.6 C 14 17 -14 17 -21.9 15.6",
        "M 0.35 15.6 L 0.35 70.7",
        "M 0.95 15.6 L 0.95 70.7",
        "M 25.9 68.2 C 16 69 -16 69 -25.9 68.2",
        "M 24.6 26 C 24.1 40 24 54 24.6 69.8",
        "M -24.6 26 C -24.1 40 -24 54 -24.6 69.8",
        "M 15.6 46 L 17.6 46",
        "M -15.6 46 L -17.6 46",
    )
    pleat_folds = tuple(Fold(s * 16.6, 16, s * 15.9, 50, 1.0, 0.55, 0) for s in (-1, 1))
    return assembled(
        canvas,
        frame,
        [
            Piece(
                BACK,
                SHELL,
                seams=(yoke, "M 0 15.5 L 0 70.8", *pleats),
                stitches=stitches,
                folds=body_folds(211, 1) + body_folds(223, -1) + pleat_folds,
                puff=(9.0, 0.9),
                slack=0.7,
                lift=0.3,
                seed=211,
            ),
            *sleeve(-1, 231),
            *sleeve(1, 251),
            Piece(
                BACK_COLLAR,
                CORD,
                grain=90,
                stitches=("M -11.2 3.6 C -6 5.7 6 5.7 11.2 3.6",),
                puff=(2.0, 0.5),
                slack=0.14,
                lift=0.5,
                seed=261,
            ),
        ],
    )


SIDE_BODY = (
    "M 6.4 -0.6 C 11.5 1.6 14.2 8 14.9 17 C 15.4 25 14 36 13.9 44 C 13.8 54 14.4 62 14.2 69.8 "
    "C 5 71.2 -6 71.5 -15.4 71.2 C -16 60 -15.6 48 -15.8 38 C -16 28 -15.4 20 -13.2 14.5 "
    "C -11.5 10.5 -9.4 7.5 -6.6 5.6 Z"
)
SIDE_SLEEVE = (
    "M 1.4 5.2 C -4.6 5.8 -8.2 11.4 -9.2 20 C -10 30 -11 44 -12.6 64.2 L -1.0 66.4 C 0.4 55 7.4 42"
    " 9.3 27 C 10 15 7.6 6.6 1.4 5.2 Z"
)
SIDE_CUFF = (
    "M -12.4 58.4 L -12.9 64.6 C -9 66.6 -5 67.3 -0.9 66.9 L 0.1 60.4 C -4 60.6 -8.4 60 -12.4"
    " 58.4 Z"
)


SIDE_COLLAR = (
    "M 5.6 -3.7 C 1.8 -3.6 -3.6 -1.6 -6.9 4.2 C -8.2 7 -9.4 9.6 -10.2 12.4 "
    "C -6.6 10.4 -4 7.4 -0.6 5 C 2.4 3.5 5.4 3 8.6 2.8 C 8.4 0.4 7.6 -2 5.6 -3.7 Z"
)


def side_pockets() -> list[Piece]:
    """Returns the pockets of the front, foreshortened because they wrap round the chest."""
    pieces = []
    for i, (a, b, y0, y1, flap) in enumerate(
        ((-14.9, -9.0, 21.5, 35.3, 5.2), (-15.1, -7.4, 45, 64.2, 6.2))
    ):
        bag = (
            f"M {a} {y0} L {a} {y1 - 1.8} L {a + 0.7} {y1 - 0.2} L {b - 1.2} {y1 + 0.1} L {b}"
            f" {y1 - 1.5} L {b} {y0}"
        )
        lid = (
            f"M {a - 0.3} {y0 - 0.9} L {a - 0.2} {y0 + flap - 0.2} L {a + 0.9} {y0 + flap} "
            f"L {b + 0.2} {y0 + flap - 1.5} L {b + 0.2} {y0 - 0.9}"
        )
        inner = (
            f"M {b - 0.35} {y0} L {b - 0.35} {y1 - 1.6} L {b - 1.3} {y1 - 0.3} L {a + 0.5}"
            f" {y1 - 0.6}"
        )
        rim = (
            f"M {b - 0.15} {y0 - 0.9} L {b - 0.15} {y0 + flap - 1.75} L {a + 0.9}"
            f" {y0 + flap - 0.35}"
        )
        pieces += [
            Piece(
                bag + " Z",
                SHELL,
                stitches=(inner,),
                form=SIDE_BODY,
                puff=(8.0, 0.95),
                slack=0.2,
                lift=0.2,
                seed=311 + i,
            ),
            Piece(
                lid + " Z",
                SHELL,
                stitches=(rim, f"M {a - 0.3} {y0 - 0.5} L {b + 0.2} {y0 - 0.5}"),
                form=SIDE_BODY,
                puff=(8.0, 0.95),
                slack=0.15,
                lift=0.3,
                seed=321 + i,
            ),
        ]
    return pieces


def side(canvas: Image, frame: Frame) -> Image:
    """Draws the jacket from the wearer's left: the front is on the left of the picture."""
    rng = random.Random(331)
    falls = tuple(
        Fold(
            x,
            rng.uniform(26, 40),
            x + rng.uniform(-1.5, 1.5),
            rng.uniform(60, 71),
            rng.uniform(1.2, 2.2),
            rng.choice((-0.6, 0.55)),
            rng.uniform(-0.8, 0.8),
        )
        for x in (-13.4, -7, -2, 2.5, 6, 9, 12)
    )
    drags = tuple(
        Fold(13.8, y, rng.uniform(5, 8), y - rng.uniform(1, 6), 0.8, rng.choice((-0.5, 0.5)), 0.6)
        for y in (30, 33, 36.5, 40, 45, 51)
    )
    yoke = "M 15 14.4 C 11 15.2 8 15.6 4 15.8"
    side_seam = "M -1 24 C -1.4 40 -1.6 56 -1.4 71.4"
    pleat = "M 11.6 15 C 11.4 28 11 38 10.9 46"
    collar_line = "M -9.7 11.7 C -6.5 9.8 -4 6.9 -0.7 4.5 C 2.3 3 5.4 2.5 8.5 2.3"
    armhole = "M 1.4 5.8 C -4.1 6.4 -7.6 11.8 -8.6 20 L -8.9 24"
    canvas = assembled(
        canvas,
        frame,
        [
            Piece(
                SIDE_BODY,
                SHELL,
                seams=(yoke, side_seam, pleat),
                stitches=(
                    "M 15 15 C 11 15.8 8 16.2 4 16.4",
                    "M 15 15.6 C 11 16.4 8 16.8 4 17",
                    "M -0.8 24 C -1 40 -1.2 56 -1 71.3",
                    "M 14.2 67.8 C 5 69.2 -6 69.5 -15.5 69.2",
                    "M 10.2 46 L 11.6 46",
                ),
                folds=falls + drags,
                puff=(8.0, 0.95),
                slack=0.75,
                lift=0.3,
                seed=331,
            ),
            *side_pockets(),
            Piece(
                SIDE_SLEEVE,
                SHELL,
                grain=4,
                stitches=(armhole, "M 1.4 5.8 C 7 7 9.3 14.8 8.7 26"),
                folds=sleeve_folds(341, SIDE_EDGES),
                puff=(5.6, 0.75),
                slack=0.5,
                lift=0.6,
                seed=341,
            ),
            Piece(
                SIDE_CUFF,
                SHELL,
                grain=8,
                stitches=(
                    "M -12.5 59.1 C -8.4 60.7 -4 61.3 0 61.1",
                    "M -12.8 64 C -9 66 -5 66.7 -0.8 66.3",
                ),
                puff=(2.8, 0.55),
                slack=0.16,
                lift=0.22,
                seed=361,
            ),
            Piece(
                SIDE_COLLAR,
                CORD,
                grain=66,
                stitches=(collar_line,),
                puff=(2.2, 0.5),
                slack=0.16,
                lift=0.5,
                seed=371,
            ),
        ],
    )
    return buttoned(canvas, frame, -2.6, 63.6, 0.75, 20)


FLAT = (BACK, BACK_COLLAR, SLEEVE, mirrored(SLEEVE), CUFF, mirrored(CUFF))
# view -> (function that draws it, shapes that cast its shadow on the background)
VIEWS = {
    "front": (front, FLAT),
    "back": (back, FLAT),
    "side": (side, (SIDE_BODY, SIDE_SLEEVE, SIDE_COLLAR, SIDE_CUFF)),
}
