"""Fetches fonts for scripts that the bundled ones lack: `python -m tools.print_fonts FOLDER`.

They are Noto Sans for Chinese, Japanese, Korean, Arabic, Hebrew, Thai and Devanagari, regular and
bold, under the SIL Open Font License, whose text is kept beside each. They come out of packages of
the registry that npm is set up for; requirements/fonts pins each by version and SHA-512. Nothing of
a package runs, and nothing is fetched if all fonts are there.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_LOCKED = Path(__file__).resolve().parent.parent / "requirements" / "fonts"
_WEIGHTS = ("400Regular", "700Bold")


def main(folder: Path) -> None:
    packages = sorted(json.loads((_LOCKED / "package.json").read_text())["dependencies"])
    if all(_wanted(folder / Path(package).name) for package in packages):
        return
    if shutil.which("npm") is None:
        sys.exit("atelier: the fonts couldn't be fetched: npm is not installed; install Node.js")
    with tempfile.TemporaryDirectory(prefix="atelier-fonts-") as directory:
        fetched = Path(directory)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_LOCKED / name, fetched / name)
        # `ci` takes exactly what the lock has, and refuses bytes of another SHA-512.
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(npm, cwd=fetched, check=True)
        for package in packages:
            _take(fetched / "node_modules" / package, folder / Path(package).name)


def _take(package: Path, folder: Path) -> None:
    """Copies the fonts and their licence, so that a folder that exists is whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for weight in _WEIGHTS:
        [font] = (package / weight).glob("*.ttf")
        shutil.copy(font, part / font.name)
    shutil.copy(package / "LICENSE_FONT", part / "LICENSE")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _wanted(folder: Path) -> bool:
    return len(list(folder.glob("*.ttf"))) == len(_WEIGHTS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m tools.print_fonts FOLDER")
    try:
        main(Path(sys.argv[1]))
    except subprocess.CalledProcessError as problem:
        sys.exit(f"atelier: the fonts couldn't be fetched: {problem}")
