import os
import subprocess
import sys

from tests.suite import ROOT


def test_the_demo_client_can_import_nothing_of_ours_but_the_stubs() -> None:
    code = (
        "import importlib.util as u; print([n for n in ('services', 'shared', 'cli') if"
        " u.find_spec(n)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "gen")}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "[]", answer.stderr

    source = (ROOT / "examples" / "client" / "demo.py").read_text()
    assert not [
        line
        for line in source.splitlines()
        if line.startswith(("from services", "from shared", "from cli"))
    ]
