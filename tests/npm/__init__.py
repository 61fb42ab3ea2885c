"""Programs and libraries from npm that nobody here wrote, pinned in package-lock.json."""

import fcntl
import shutil
import subprocess
from pathlib import Path

from tests.suite import ROOT

_HERE = Path(__file__).parent
_FOLDER = ROOT / ".tools" / "npm"
MODULES = _FOLDER / "node_modules"


def install() -> None:
    """Installs what package-lock.json names, unless it is there."""
    assert shutil.which("npm"), "Node.js is missing; deselect needs_node"
    wanted = (_HERE / "package-lock.json").read_bytes()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in several processes
        installed = _FOLDER / "installed.json"
        if installed.exists() and installed.read_bytes() == wanted:
            return
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, _FOLDER / name)
        command = ["npm", "ci", "--prefix", str(_FOLDER), "--no-audit", "--no-fund"]
        done = subprocess.run([*command, "--ignore-scripts"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        installed.write_bytes(wanted)
