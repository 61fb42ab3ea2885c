"""The place for your model. What stands here needs no GPU: it pastes, draws and measures, so that
the way from Atelier to this server and back can be tried before there is a model.

Replace the bodies of `try_on`, `image` and `analyse`, and NAME, VERSION and TASKS. Call `advance`
between steps: it tells Atelier how far the run is, and ends a run that nobody wants any more.
"""

import io
import json
import math
import random
from collections.abc import Callable, Sequence

from atelier.models.v1 import model_pb2 as pb
from PIL import Image, ImageDraw, UnidentifiedImageError

NAME, VERSION = "paste", "1"
TASKS = ("conversion", "generation.image", "analysis.product", "moderation")
REFUSED_WORDS = ("nude", "naked")  # put your own check here
LONGER_SIDE = {"1K": 1024, "2K": 2048}


class Failed(Exception):
    """Raised for a run without a result; `kind` is one of pb.RunFailureKind."""

    def __init__(self, kind: int, message: str, category: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.category = category


def run(
    head: pb.RunHead, pictures: Sequence[bytes], advance: Callable[[float], None]
) -> tuple[pb.RunOutcome, bytes]:
    """Returns the outcome, and the bytes of the picture if one was made. Raises Failed."""
    judges = head.task == "moderation"
    words = f"{head.prompt} {head.style} {head.instruction if judges else ''}".lower()
    if found := next((each for each in REFUSED_WORDS if each in words), ""):
        text = f"nothing like this is made here ({found}); ask for something else"
        raise Failed(pb.RUN_FAILURE_KIND_REFUSED, text, category="nudity")
    try:
        shown = [Image.open(io.BytesIO(each)).convert("RGB") for each in pictures]
    except (UnidentifiedImageError, OSError):
        raise Failed(pb.RUN_FAILURE_KIND_BAD_INPUT, "a picture can't be read") from None
    if judges:  # by its words alone: nobody looks at the pictures
        return pb.RunOutcome(passed=pb.PassedResult()), b""
    advance(0.1)
    if head.task == "analysis.product":
        return pb.RunOutcome(findings=analyse(head, shown)), b""
    seed = head.seed if head.HasField("seed") else random.randrange(2**31)
    if head.task == "conversion":
        made, evidence = try_on(shown, advance)
        result = pb.PictureResult(evidence=evidence)
    else:
        result = pb.PictureResult(seed=seed)
        result.parameters["steps"] = 8
        made = image(head, seed, advance)
    out = io.BytesIO()
    made.save(out, "JPEG", quality=92)
    result.size_bytes = len(out.getvalue())
    return pb.RunOutcome(picture=result), out.getvalue()


def try_on(
    shown: Sequence[Image.Image], advance: Callable[[float], None]
) -> tuple[Image.Image, list[pb.RunEvidence]]:
    """Lays the garment flat on the middle of the person's picture."""
    person, garment = shown[0].copy(), shown[1]
    width = person.width * 2 // 5
    height = min(garment.height * width // garment.width, person.height // 2)
    advance(0.5)
    person.paste(garment.resize((width, height)), ((person.width - width) // 2, person.height // 4))
    note = "the garment lies flat on the picture; nobody looked for a body"
    return person, [pb.RunEvidence(name="likeness", value=0.2, weight=1, note=note)]


def image(head: pb.RunHead, seed: int, advance: Callable[[float], None]) -> Image.Image:
    """Draws circles that follow from the seed."""
    across, down = map(int, (head.aspect_ratio or "1:1").split(":"))
    scale = LONGER_SIDE.get(head.resolution, 1024) / max(across, down)
    size = round(across * scale), round(down * scale)
    chance = random.Random(seed)
    made = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(made)
    for step in range(8):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        radius = chance.randrange(40, min(size) // 3)
        colour = tuple(chance.randrange(256) for _ in range(3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        advance((step + 1) / 8)
    return made


def analyse(head: pb.RunHead, shown: Sequence[Image.Image]) -> pb.FindingsResult:
    """States the colour in the middle of the first picture, and nothing else: what isn't seen is
    null."""
    answer: dict[str, object] = dict.fromkeys(json.loads(head.findings_schema)["properties"])
    if shown:
        left, top = shown[0].width // 4, shown[0].height // 4
        middle = shown[0].crop((left, top, shown[0].width - left, shown[0].height - top))
        red, green, blue = middle.resize((1, 1)).tobytes()
        name = min(_COLOURS, key=lambda each: math.dist(_COLOURS[each], (red, green, blue)))
        answer["name"] = {
            "value": f"{name} product",
            "confidence": 0.2,
            "evidence": f"the mean colour of the middle is {red}, {green}, {blue}",
            "picture": 1,
        }
    return pb.FindingsResult(json=json.dumps(answer))


_COLOURS = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "red": (190, 40, 40),
    "green": (50, 130, 60),
    "blue": (40, 70, 170),
    "yellow": (220, 190, 60),
    "brown": (120, 80, 50),
}
