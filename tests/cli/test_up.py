import socket
import subprocess
from typing import Any

import grpc
import pytest
from atelier.pipeline.v1 import product_pb2, product_pb2_grpc

from tests.cli.conftest import Command, interrupt


def until(process: "subprocess.Popen[str]", text: str) -> str:
    """Returns what the process printed up to and including the line with `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended without saying {text!r}:\n{seen}")


@pytest.mark.long
def test_up_serves_prints_what_to_do_next_and_leaves_nothing_behind(
    atelier_command: Command,
) -> None:
    process = atelier_command.start("up")
    try:
        said = until(process, "Ctrl-C stops")
        assert "Atelier is up" in said
        assert "atelier token" in said

        token = atelier_command.run("token", "--user", "ada").stdout.strip()
        with grpc.insecure_channel(
            f"127.0.0.1:{atelier_command.environment['ATELIER_PIPELINE_PORT']}"
        ) as channel:
            stub: Any = product_pb2_grpc.ProductServiceStub(channel)  # its type stubs are asyncio's
            metadata = [("authorization", f"Bearer {token}")]
            assert (
                stub.GetSummary(
                    product_pb2.GetSummaryRequest(), metadata=metadata, timeout=10
                ).total_products
                == 0
            )

        second = atelier_command.run("up")
        assert second.returncode == 1
        assert "already running" in second.stderr

        checked = atelier_command.run("doctor")
        assert checked.returncode == 0, checked.stderr
    finally:
        status = interrupt(process)
    assert status == 0
    assert atelier_command.left_behind() == []


def test_the_doctor_names_a_font_that_is_not_there(atelier_command: Command) -> None:
    atelier_command.environment["ATELIER_FONTS"] = "/nowhere/House.ttf"
    checked = atelier_command.run("doctor")
    assert checked.returncode == 1
    said = " ".join((checked.stdout + checked.stderr).split())
    assert "ATELIER_FONTS" in said and "/nowhere/House.ttf isn't there" in said


@pytest.mark.long
def test_a_taken_port_is_one_line_with_the_next_step(atelier_command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(atelier_command.environment["ATELIER_TECHFILES_PORT"])))
        taken.listen()
        answer = atelier_command.run("up")
    assert answer.returncode == 1

    port = atelier_command.environment["ATELIER_TECHFILES_PORT"]
    assert f"port {port} for techfiles can't be used" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert atelier_command.left_behind() == []


@pytest.mark.faults
def test_killing_the_command_ends_what_it_started(atelier_command: Command) -> None:
    process = atelier_command.start("up")
    until(process, "Ctrl-C stops")
    process.kill()
    process.communicate(timeout=10)
    for _ in range(200):
        if not atelier_command.left_behind():
            break
        subprocess.run(["sleep", "0.1"], check=True)

    assert atelier_command.left_behind() == []


@pytest.mark.long
def test_a_database_that_is_away_is_one_line(atelier_command: Command) -> None:
    answer = atelier_command.run("up", "--database-url", "postgresql://nobody:x@127.0.0.1:1/none")
    assert answer.returncode == 1
    assert "can't reach the database" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.long
def test_a_token_needs_exactly_one_name(atelier_command: Command) -> None:
    for arguments in ((), ("--user", "ada", "--vendor", "acme")):
        answer = atelier_command.run("token", *arguments)
        assert answer.returncode == 2
        assert "exactly one" in answer.stderr
