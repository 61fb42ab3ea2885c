"""Reads the lines of text on labels and tags, with the models that the package rapidocr carries
(PP-OCRv6, small). It is there if requirements/reading.txt is installed.

The longer side of the picture that is searched has 960 pixels: of the sizes that were tried the one
that reads most, and faster than the package's own. A picture takes 0.4 to 1.2 s and 500 MiB.
"""

import functools
from pathlib import Path
from typing import Any

import pyvips

from services.conversions.local import codes, picture
from services.conversions.local.reading import Labels, Line, box_of, printable

_SIDE = 1600
_MOST, _LONGEST = 200, 300  # lines of one picture, characters of a line


def read_labels(path: Path, *, closer: bool) -> Labels:
    """Reads the lines of text in one photograph. `closer`: looks for codes at full size, too.
    Raises RuntimeError if the models fail."""
    found = codes.look_closer(path) if closer else ()
    photo = picture.flat(picture.open_upright(path, _SIDE))
    return Labels(_lines(photo), found)


def _lines(photo: pyvips.Image) -> tuple[Line, ...]:
    import numpy as np

    width, height = photo.width, photo.height
    rgb = np.frombuffer(photo.write_to_memory(), np.uint8).reshape(height, width, 3)
    try:
        answer = _reader()(np.ascontiguousarray(rgb[:, :, ::-1]))
    except Exception as error:  # too little memory is an error of onnxruntime's own
        raise RuntimeError(f"labels can't be read: {type(error).__name__}") from None
    if answer.boxes is None:
        return ()
    lines = [
        Line(printable(text)[:_LONGEST], round(float(score), 3), _box(corners, width, height))
        for text, score, corners in zip(answer.txts, answer.scores, answer.boxes, strict=True)
    ]
    return tuple(line for line in lines[:_MOST] if line.text)


def _box(corners: Any, width: int, height: int) -> tuple[float, float, float, float]:
    return box_of([(float(x), float(y)) for x, y in corners], width, height)


@functools.cache
def _reader() -> Any:
    """Returns the reader, once a process: opening it takes a second."""
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            # Lines aren't turned by 180 degrees, which costs a third model.
            "Global.use_cls": False,
            # Without a path, a model that isn't there would be fetched from the network.
            "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
            "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
            "Det.limit_type": "max",
            "Det.limit_side_len": 960,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "EngineConfig.onnxruntime.enable_cpu_mem_arena": False,
        }
    )
