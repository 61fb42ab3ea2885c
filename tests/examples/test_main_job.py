"""docs/clients.md and examples/ lead from an empty folder to a tech pack, in four languages.

The tests run the blocks of the page as they stand. While the whole job runs, they end two servers:
they kill one while a watch is open, and tell the other to stop while a call waits for a job.
"""

import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.conversions.v1 import conversion_pb2, conversion_pb2_grpc

from tests.cli.conftest import Command, interrupt, private_command
from tests.cli.test_up import until
from tests.examples.page import BUILD, blocks, environment, preamble, run, shell
from tests.suite import ROOT

PRESETS = {"thumb", "small", "large", "avif"}
LANGUAGES = [
    pytest.param("Go", marks=pytest.mark.needs_go),
    pytest.param("TypeScript", marks=pytest.mark.needs_node),
    pytest.param("Java", marks=pytest.mark.needs_java),
    pytest.param("Rust", marks=pytest.mark.needs_rust),
]
pytestmark = pytest.mark.examples


@pytest.fixture(scope="module")
def running() -> "Iterator[tuple[Command, subprocess.Popen[str]]]":
    """Runs one suite for all languages. None sees what another makes."""
    with private_command() as command:
        process = command.start("up")
        try:
            until(process, "Ctrl-C stops")
            yield command, process
        finally:
            interrupt(process)


def server(up: "subprocess.Popen[str]", service: str) -> int:
    """Returns the process id of a server that `./atelier up` runs."""
    for task in Path(f"/proc/{up.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if arguments[2:4] == [f"services.{service}", "serve"]:
                return int(pid)
    raise AssertionError(f"{service} doesn't run")


class Job:
    """A run of an example, whose output is read line by line."""

    def __init__(self, command: Command, block: str, user: str) -> None:
        """Builds the example with all lines of the block but the last, and starts it with that."""
        *lines, last = block.strip().splitlines()
        run(command.environment, preamble(user), *lines)
        [folder] = re.findall(r" cd \$WORK/(\S+)$", lines[0])
        self.pdf = BUILD / folder / "tech-pack.pdf"
        self.pdf.unlink(missing_ok=True)
        self._environment = environment(command.environment)
        self._lines = [preamble(user), f"cd {BUILD / folder}", f"exec {last}"]
        self._process = subprocess.Popen(
            shell(*self._lines),
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def until(self, pattern: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if re.match(pattern, line):
                return
        raise AssertionError(f"ended without {pattern!r}:\n{self}")

    def ends(self) -> int:
        assert self._process.stdout is not None
        self.lines += [line.rstrip() for line in self._process.stdout]
        return self._process.wait(20)

    def with_another_token(self, token: str) -> "subprocess.CompletedProcess[str]":
        *before, last = self._lines
        return subprocess.run(
            shell(*before, f"export ATELIER_TOKEN={token}", last),
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=10)

    def said(self, pattern: str) -> list[str]:
        """Returns the pattern's group from each line that it fits."""
        return [found[1] for line in self.lines if (found := re.fullmatch(pattern, line))]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.mark.parametrize("language", LANGUAGES)
def test_from_an_empty_folder_to_the_first_call(
    language: str, running: "tuple[Command, subprocess.Popen[str]]"
) -> None:
    block = blocks(language)[0]
    [folder] = re.findall(r" cd \$WORK/(\S+)$", block, re.MULTILINE)
    shutil.rmtree(BUILD / folder, ignore_errors=True)
    said = run(running[0].environment, preamble(f"first-{language.lower()}"), block)
    assert said.endswith("products: 0\n")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_main_job_survives_servers_that_go_away(
    language: str, running: "tuple[Command, subprocess.Popen[str]]"
) -> None:
    command, up = running
    user = f"{language.lower()}-{uuid.uuid4().hex[:6]}"
    job = Job(command, blocks(language)[1], user)
    try:
        job.until("phase 1 (PHASE_STATE_)?RUNNING")
        os.kill(server(up, "pipeline"), signal.SIGKILL)
        job.until("product ")
        time.sleep(0.3)
        os.kill(server(up, "conversions"), signal.SIGTERM)
        assert job.ends() == 0, str(job)
    finally:
        job.stop()

    made = job.said(r"variant (\w+) \d+ \d+")
    assert set(made) == PRESETS and len(made) == len(PRESETS), str(job)
    assert set(job.said(r"phase (\d) (?:PHASE_STATE_)?COMPLETED")) == set("1234"), str(job)
    assert job.said(r"review approved, phase (\d)"), str(job)
    assert job.said(r"generation \S+ (?:JOB_STATE_)?(COMPLETED)"), str(job)
    assert job.said(r"tech pack \S+ (?:RUN_STATE_)?(COMPLETED)"), str(job)

    [size] = job.said(r"saved tech-pack.pdf (\d+)")
    pdf = job.pdf.read_bytes()
    assert pdf.startswith(b"%PDF-") and len(pdf) == int(size)
    [refusal] = job.said(r"refused (.*)")
    assert "INVALID_FIELD" in refusal and "[export_id: must be a valid UUID]" in refusal

    # The client repeated the request that lost its server, and nothing was made twice.
    assert conversions(command, user) == job.said(r"conversion (\S+) (?:JOB_STATE_)?COMPLETED")

    ended = job.with_another_token("none")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1 and "[TOKEN_INVALID " in ended.stderr, ended.stderr


def conversions(command: Command, user: str) -> list[str]:
    """Returns the ids of all conversions that the user has."""
    token = command.run("token", "--user", user).stdout.strip()
    address = f"127.0.0.1:{command.environment['ATELIER_CONVERSIONS_PORT']}"
    with grpc.insecure_channel(address) as channel:
        stub: Any = conversion_pb2_grpc.ConversionServiceStub(channel)  # typed for asyncio alone
        request = conversion_pb2.ListConversionsRequest()
        metadata = [("authorization", f"Bearer {token}")]
        answer = stub.ListConversions(request, metadata=metadata, timeout=30, wait_for_ready=True)
    return [conversion.id for conversion in answer.conversions]
