"""Parts that are sewn on: buttons, buttonholes and the neck label."""

from examples.photos.cloth import Cloth, Frame, Image, Piece, laid, painted, rendered

LABEL = Cloth((226, 218, 198), weave="lining", relief=0.25, sheen=0.05, thread=(150, 120, 80))


def buttoned(
    canvas: Image, frame: Frame, x: float, y: float, radius: float, turn: float = 0.0
) -> Image:
    """Draws a four-hole corozo button sewn on at (x, y) cm."""
    r = radius
    ring = f"M {x - r} {y - r} L {x + r} {y + r}"
    holes = "".join(
        f'<circle cx="{a * r * 0.2}" cy="{b * r * 0.2}" r="{r * 0.105}" fill="#120b07"/>'
        for a in (-1, 1)
        for b in (-1, 1)
    )
    yarn = "".join(
        f'<path d="M {-r * 0.2} {b * r * 0.2 + k} L {r * 0.2} {b * r * 0.2 + k}" stroke="{c}" '
        f'stroke-width="{r * 0.06}" stroke-linecap="round"/>'
        for b in (-1, 1)
        for k, c in ((-0.03, "#d9bd8c"), (0.03, "#b4935f"))
    )
    grain = "".join(
        f'<path d="M {-r * 0.9} {r * k} Q 0 {r * (k + 0.12)} {r * 0.9} {r * (k - 0.05)}"'
        f' fill="none" stroke="#a87a4e" stroke-opacity="0.16" stroke-width="{r * 0.035}"/>'
        for k in (-0.62, -0.41, -0.16, 0.11, 0.31, 0.56)
    )
    body = f"""<defs>
      <radialGradient id="rim" cx="0.36" cy="0.3" r="0.8">
        <stop offset="0" stop-color="#7d5a3c"/>
        <stop offset="0.6" stop-color="#4a3020"/><stop offset="1" stop-color="#22150d"/>
      </radialGradient><radialGradient id="dish" cx="0.62" cy="0.68" r="0.75">
        <stop offset="0" stop-color="#7a573a"/>
        <stop offset="0.7" stop-color="#452c1d"/><stop offset="1" stop-color="#2c1b11"/>
      </radialGradient><linearGradient id="shine" x1="0" y1="0" x2="1" y2="1">
        <stop offset="0" stop-color="#fff" stop-opacity="0.8"/>
        <stop offset="1" stop-color="#fff" stop-opacity="0"/></linearGradient></defs>
      <g transform="translate({x} {y}) rotate({turn})"><circle r="{r}" fill="url(#rim)"/>{grain}
      <circle r="{r * 0.68}" fill="url(#dish)"/>
      <circle r="{r * 0.7}" fill="none" stroke="#1b100a" stroke-opacity="0.55"
        stroke-width="{r * 0.05}"/>
      {holes}{yarn}</g>
      <path transform="translate({x} {y})" d="M {-r * 0.8} {-r * 0.18}
        C {-r * 0.72} {-r * 0.6} {-r * 0.4} {-r * 0.84}
        {r * 0.05} {-r * 0.84} C {-r * 0.3} {-r * 0.7} {-r * 0.6} {-r * 0.5}
        {-r * 0.8} {-r * 0.18} Z"
        fill="url(#shine)"/>"""
    return laid(canvas, painted(frame, ring, body), 0.16)


def buttonhole(
    canvas: Image, frame: Frame, x: float, y: float, length: float, upright: bool = False
) -> Image:
    """Draws a worked buttonhole that starts at (x, y) cm: a slit between two rows of dense
    stitches."""
    bars = "".join(
        f'<path d="M {k * 0.075:.3f} {-0.2 + 0.02 * (k % 2)} L {k * 0.075:.3f}'
        f' {0.2 - 0.02 * (k % 3)}"/>'
        for k in range(int(length / 0.075) + 1)
    )
    body = (
        f'<g transform="translate({x} {y}) rotate({90 if upright else 0})"><g stroke="#d4b27a"'
        f' stroke-width="0.065" stroke-linecap="round">{bars}</g><path d="M 0.1 0 L {length - 0.14}'
        ' 0" stroke="#4a3520" stroke-width="0.055"/></g>'
    )
    return laid(
        canvas, painted(frame, f"M {x - 0.3} {y - 0.3} L {x + length} {y + length}", body), 0.05
    )


GLYPHS = {
    "K": "M0 0V6M4 0L0 3.4L4 6",
    "E": "M4 0H0V6H4M0 3H3",
    "S": "M4 .8Q2-.6.6.8T2 3T3.4 5.2T0 5.2",
    "T": "M0 0H4M2 0V6",
    "R": "M0 6V0H2.6Q4 .2 4 1.7T2.6 3.3H0M2 3.3L4 6",
    "H": "M0 0V6M4 0V6M0 3H4",
    "O": "M2 0Q4 0 4 3T2 6T0 3T2 0Z",
    "L": "M0 0V6H4",
}


def label(canvas: Image, frame: Frame, x: float, y: float) -> Image:
    """Draws the woven neck label. Its letters are strokes, so that no font of the machine
    matters."""
    tag = Piece(
        f"M {x - 3.1} {y - 0.95} L {x + 3.1} {y - 0.95} L {x + 3.1} {y + 0.95} L {x - 3.1}"
        f" {y + 0.95} Z",
        LABEL,
        stitches=(
            f"M {x - 2.95} {y - 0.8} L {x - 2.95} {y + 0.8}",
            f"M {x + 2.95} {y - 0.8} L {x + 2.95} {y + 0.8}",
        ),
        puff=(0.6, 0.15),
        slack=0.08,
        lift=0.1,
        edge=0.05,
        seed=77,
    )
    canvas = laid(canvas, rendered(frame, tag), tag.lift)
    word = "".join(
        f'<path transform="translate({i * 5.7} 0)" d="{GLYPHS[c]}"/>'
        for i, c in enumerate("KESTERHOLT")
    )
    body = (
        f'<g transform="translate({x - 2.45} {y - 0.26}) scale(0.088)" fill="none" stroke="#3c2c20"'
        f' stroke-width="0.9" stroke-linecap="round">{word}</g>'
    )
    return laid(canvas, painted(frame, tag.outline, body), 0.02)
