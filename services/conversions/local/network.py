"""Runs one of the vision models on a picture."""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pyvips

from services.conversions.local import picture, vision

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

Values: TypeAlias = "memoryview[float]"


def run(path: Path, pixels: bytes) -> list[Values]:
    """Returns the outputs of a model as flat lists of values. `pixels`: float32, in the size that
    the model takes."""
    network = _network(path)
    # Views of tensors must be gone before the network runs.
    memoryview(network.tensor(network.get_input_details()[0]["index"])()).cast("B")[:] = pixels
    network.invoke()
    return [
        memoryview(bytes(memoryview(network.tensor(output["index"])()))).cast("f")
        for output in network.get_output_details()
    ]


def squared(image: pyvips.Image, side: int) -> pyvips.Image:
    """Returns the picture scaled into a square, centred, with black bars, in three bands."""
    fitted = picture.flat(image).resize(side / max(image.width, image.height))
    left, top = (side - fitted.width) // 2, (side - fitted.height) // 2
    return fitted.embed(left, top, side, side)


def floats(image: pyvips.Image, low: float) -> bytes:
    """Returns the values 0..255 as float32 from `low` to 1."""
    return bytes(image.linear((1 - low) / 255, low).cast("float").write_to_memory())


def release() -> None:
    """Frees the memory of the model that was run last: up to 42 MiB, which a large picture needs
    afterwards."""
    _network.cache_clear()


@lru_cache(maxsize=1)
def _network(path: Path) -> "Interpreter":
    # Read when the runtime's numpy is loaded; each of its threads would reserve 20 MiB of the
    # addresses that a child process may have, for algebra that nobody asks for.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ai_edge_litert.interpreter import Interpreter

    # One thread gives the same values whatever else the machine does.
    network = Interpreter(model_content=vision.content(path), num_threads=1)
    network.allocate_tensors()
    return network
