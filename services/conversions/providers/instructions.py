"""What a model that follows words is told: the instruction for each task, in plain English."""

from services.conversions import rules
from services.conversions.providers.contract import PictureRequest

_TRY_ON = """\
Dress the person of the first picture in the garment of the second picture.
Keep the person as they are: face, hair, skin, body shape, pose, hands, and everything they wear \
that the garment doesn't replace. Keep the background, the light, the camera and the framing of \
the first picture.
Keep the garment as it is: cut, length, colour, pattern, print, lettering, seams and closures. \
Let it fit and drape as it would on this body.
Show one person, once. Add nothing else. Output the final image only."""
_SKETCH = """\
Draw the garment of the picture as a flat technical line drawing for a factory: black lines of \
even width on white, no shading, no colour, no body, no text, no measurements.
Draw every seam, stitch line, closure, pocket and edge that can be seen, in its place and \
proportion, and nothing that can't be seen. Output the final image only."""
_LAST = "Output the final image only."


def picture(request: PictureRequest) -> str:
    """Returns the instruction for a picture: the words for its task, then the caller's."""
    if request.task == rules.CONVERSION_TASK:
        return f"{_TRY_ON}\nStyle: {request.style}." if request.style else _TRY_ON
    if request.task == "generation.sketch":
        return f"{_SKETCH}\n{request.prompt}" if request.prompt else _SKETCH
    # Without this line models now and then answer in words.
    return f"{request.prompt}\n{_LAST}"
