"""Arguments and results of `shared.imaging`: plain values that can be passed between processes."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

MEBIBYTE = 1024 * 1024


class Reason(StrEnum):
    """Why a file was refused. The values must not change: they are stored and shown to callers."""

    EMPTY = "EMPTY"
    TYPE_NOT_ALLOWED = "TYPE_NOT_ALLOWED"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    VIDEO_NOT_SUPPORTED = "VIDEO_NOT_SUPPORTED"
    HEIC_NOT_SUPPORTED = "HEIC_NOT_SUPPORTED"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    ACTIVE_CONTENT = "ACTIVE_CONTENT"
    EXECUTABLE = "EXECUTABLE"
    TOO_MANY_BYTES = "TOO_MANY_BYTES"
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    TOO_MANY_FRAMES = "TOO_MANY_FRAMES"
    CORRUPT = "CORRUPT"
    ENCRYPTED = "ENCRYPTED"
    TOO_EXPENSIVE = "TOO_EXPENSIVE"
    HAS_LOCATION = "HAS_LOCATION"


class ImageRejected(Exception):
    """The file itself is at fault: the same bytes are refused each time.

    `message` is for the sender: it names the limit and the next step, and holds no path and no
    library's text.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        # Exception gets both arguments, because pickle passes its arguments to __init__ in the
        # parent process.
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class NotUnderstood(ImageRejected):
    """An unforeseen error with this file: the sender can send another, and the cause is logged for
    the operator."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, all inclusive. `pixels` counts all frames or pages together; `side` is the
    longer side of each, in pixels. `locations`: whether pictures may state where they were
    taken."""

    image_bytes: int = 10 * MEBIBYTE
    pdf_bytes: int = 50 * MEBIBYTE
    pixels: int = 50_000_000
    side: int = 65_535
    frames: int = 100
    pdf_pages: int = 1000
    locations: bool = True


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Colour:
    """A dominant colour: `hex` is `#rrggbb` in sRGB, `share` its fraction 0..1 of the opaque
    pixels."""

    hex: str
    share: float


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of the first frame, upright, in sRGB, scaled to 800 pixels on its longer side.

    placeholder: a ThumbHash, base64. colours: up to five, largest share first; empty if nothing is
    opaque. focal_x, focal_y: the point of attention, as fractions 0..1 of width and height from the
    top left. sharpness: 0..1, v / (v + 200) for the variance v of the 3x3 Laplacian of 8-bit luma.
    A flat picture has 0, a blurred photograph less than about 0.3, a crisp one more than about 0.6.
    Noise counts as sharp. exposure: 0..1, mean CIE lightness L*/100 of the opaque pixels; 0 if
    nothing is opaque. clipped_shadows, clipped_highlights: shares 0..1 of opaque pixels with luma
    <= 2 or >= 253. A white backdrop counts as clipped highlights.
    """

    placeholder: str
    colours: tuple[Colour, ...]
    focal_x: float
    focal_y: float
    sharpness: float
    exposure: float
    clipped_shadows: float
    clipped_highlights: float


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that `inspect` found in a file.

    A PDF (`kind == "pdf"`) has only a page count: width, height and measures are None, and it gets
    no variants, because libvips is built without a PDF renderer. width and height are pixels of the
    first frame after `orientation` (EXIF, 1..8, 1 is upright) is applied. `pages` counts frames of
    an animation too. `source_type` is the IPTC digital source type in its XMP, "" if none.
    `has_location`: the file states where it was taken (`shared.imaging.places` defines a place).
    `has_alpha`: the file declares transparency. `may_have_manifest`: if False, `read_credentials`
    would find nothing.
    """

    kind: Literal["image", "pdf"]
    mime_type: str
    size: int
    pages: int
    width: int | None = None
    height: int | None = None
    orientation: int = 1
    has_alpha: bool = False
    has_icc_profile: bool = False
    has_location: bool = False
    source_type: str = ""
    may_have_manifest: bool = False
    measures: Measures | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """The contents of the C2PA manifest in a file, and the result of its validation.

    state: `trusted` (intact, and signed with a certificate that leads to a trust anchor), `valid`
    (intact, signer unknown), `invalid` (file or manifest were changed, or the signature is wrong),
    `unreadable` (all other fields are empty). claim_generator: the program that wrote it. signer:
    the certificate's organisation; signer_name: its common name. signed_at: RFC 3339, if the
    manifest has a time stamp. source_type: see Facts. problems: codes of the specification.
    manifest_store: the whole store as JSON; empty if longer than 64 KiB.
    """

    state: str
    claim_generator: str = ""
    signer: str = ""
    signer_name: str = ""
    signed_at: str = ""
    source_type: str = ""
    problems: tuple[str, ...] = ()
    manifest_store: str = ""


@dataclass(frozen=True)
class Ingredient:
    """A file that a picture was made from. `role`: its use, each once in a claim. `parent`: the
    picture is this file, written anew; otherwise it went into the model."""

    role: str
    path: Path
    mime_type: str
    sha256: str
    parent: bool = False


@dataclass(frozen=True)
class Claim:
    """What a manifest says about a picture. `source_type`: see Facts; may be empty if there is a
    parent. `model`: what made it. `change`: what was done to the parent, an action of C2PA."""

    mime_type: str
    source_type: str
    model: str
    model_version: str
    recipe_digest: str
    ingredients: tuple[Ingredient, ...] = ()
    change: str = "c2pa.transcoded"


@dataclass(frozen=True)
class SigningIdentity:
    """What pictures are signed with. `chain`: the PEM certificates, that of the signer first.
    `key`: the PEM key. `algorithm`: as the C2PA library names it."""

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    expires_at: datetime


class SigningFailed(Exception):
    """A picture can't be signed. The text is the library's."""


Format = Literal["webp", "avif", "jpeg", "png"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A variant's parameters: it fits into width x height pixels. `quality` is 1..100, `effort`
    0..9 (more is slower and smaller). Formats that lack one ignore it: PNG has no quality, JPEG no
    effort."""

    name: str
    width: int
    height: int
    format: Format
    quality: int = 80
    effort: int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 16383 and 1 <= self.height <= 16383):
            raise ValueError(
                f"preset {self.name}: width and height must be 1..16383 pixels, the most WebP can"
                " hold"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"preset {self.name}: quality must be 1..100")


DEFAULT_PRESETS = (
    Preset("thumb", 256, 256, "webp"),
    Preset("small", 800, 800, "webp"),
    Preset("large", 1600, 1600, "webp"),
    # Effort 4 takes four times as long as 3 for 3 % fewer bytes.
    Preset("avif", 800, 800, "avif", quality=60, effort=3),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant on disk. `sha256` is the digest of its bytes in lower-case hex."""

    name: str
    path: Path
    format: Format
    mime_type: str
    width: int
    height: int
    size: int
    sha256: str
