"""The optional models that see persons and faces: which files they are, and what runs them.

`make vision` installs the runtime and fetches the files, whose licence is Apache-2.0. Without them
`local` works with outlines alone. A process that only names the models needs neither libvips nor
the runtime.
"""

import hashlib
from importlib import metadata, util
from pathlib import Path

RUNTIME = "ai-edge-litert"
DETECT_POSE = "pose_detection.tflite"
FIND_LANDMARKS = "pose_landmark_full.tflite"
DETECT_FACES = "face_detection_full_range_sparse.tflite"
SHA256 = {
    DETECT_POSE: "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    FIND_LANDMARKS: "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    DETECT_FACES: "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
}


class NotInstalled(Exception):
    """Raised if the runtime or a model is missing or another than the one that is known. The text
    says what to do."""


def models_in(folder: str) -> Path | None:
    """Returns the folder of the models, or None if none is named. Raises NotInstalled unless the
    runtime and all files are there."""
    if not folder:
        return None
    if util.find_spec("ai_edge_litert") is None:
        raise NotInstalled(
            f"{RUNTIME} isn't installed: run `make vision`, or name no vision models"
        )
    path = Path(folder).resolve()
    for name in SHA256:
        content(path / name)
    return path


def content(path: Path) -> bytes:
    """Returns the bytes of one of the models."""
    try:
        found = path.read_bytes()
    except OSError as problem:
        raise NotInstalled(
            f"{path} can't be read ({problem.strerror}): run `make vision`, or name no models"
        ) from None
    if hashlib.sha256(found).hexdigest() != SHA256[path.name]:
        raise NotInstalled(f"{path} isn't the file that is known by this name: run `make vision`")
    return found


def recipe(*names: str) -> dict[str, object]:
    """Returns what names the models that were used, for a recipe. Another processor may compute
    slightly other values with them."""
    return {
        "runtime": f"{RUNTIME} {metadata.version(RUNTIME)}",
        "models": {name: SHA256[name] for name in names},
    }
