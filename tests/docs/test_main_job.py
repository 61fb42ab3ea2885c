import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Command, atelier_command, interrupt
from tests.cli.test_up import until
from tests.suite import ROOT

__all__ = ["atelier_command"]  # the fixture


@pytest.mark.docs
def test_the_documented_calls_do_the_main_job(atelier_command: Command, tmp_path: Path) -> None:
    """Every block of docs/main-job.md runs as a person would paste it, in one shell."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "main-job.md").read_text(), re.DOTALL)
    # Most machines have no grpcurl; on one that has it, the first definition of `call` is used.
    script = "set -u\n" + "\n".join(blocks)
    script = script.replace(" tech-pack.pdf", f" {tmp_path / 'tech-pack.pdf'}")
    process = atelier_command.start("up")

    try:
        until(process, "Ctrl-C stops")
        answer = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env={**os.environ, **atelier_command.environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        interrupt(process)

    logs = "".join(path.read_text() for path in (atelier_command.state / "logs").glob("*.log"))
    faults = [line for line in logs.splitlines() if '"level": "error"' in line]
    said = "\n".join((answer.stdout, answer.stderr, *faults))
    assert (tmp_path / "tech-pack.pdf").exists(), said
    assert (tmp_path / "tech-pack.pdf").read_bytes().startswith(b"%PDF-")
    assert "PRODUCT_STATE_COMPLETED" in answer.stdout, said
    assert answer.stdout.count("as it should be") == 2, said
    assert "Traceback" not in said
