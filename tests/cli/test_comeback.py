"""Processes that die under `atelier up` come back, Postgres too, and one line says so."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import httpx
import psycopg
import pytest
from atelier.pipeline.v1 import product_pb2, product_pb2_grpc

from cli.comeback import PAUSES, STEADY_SECONDS, Comeback
from tests.cli.conftest import Command, interrupt, private_command
from tests.small_disk import Filler, mounted

PATIENCE_SECONDS = 60.0
T = TypeVar("T")


@dataclass
class Up:
    """A running `atelier up` and its output."""

    command: Command
    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.says("Ctrl-C stops")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line)

    def end(self) -> int:
        """Sends Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_SECONDS)

    def says(self, *words: str, since: int = 0) -> str:
        """Waits for a line that holds all the words; returns it."""
        return until(
            lambda: next(
                (line for line in self.lines[since:] if all(word in line for word in words)), ""
            ),
            lambda: f"a line with {words}, after:\n{''.join(self.lines)}",
        )

    @property
    def _postgres(self) -> Path:
        return self.command.state / "postgres"

    @property
    def postgres_pid(self) -> int:
        return int((self._postgres / "data" / "postmaster.pid").read_text().split("\n")[0])

    @property
    def postgres_port(self) -> int:
        return int((self._postgres / "port").read_text())

    def database_url(self) -> str:
        password = (self._postgres / "password").read_text()
        return f"postgresql://postgres:{password}@127.0.0.1:{self.postgres_port}/atelier"

    def child(self, name: str, other_than: int = 0) -> int:
        """Waits for a child process with this name; returns its id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def found() -> int:
            for pid in map(int, children.read_text().split()):
                with suppress(OSError):
                    if name in Path(f"/proc/{pid}/cmdline").read_text() and pid != other_than:
                        return pid
            return 0

        return until(found, lambda: f"{name} runs")

    def serves(self) -> None:
        """Waits until a call that reads the database is answered, on the same addresses as
        before."""
        token = self.command.run("token", "--user", "ada").stdout.strip()
        with grpc.insecure_channel(
            f"127.0.0.1:{self.command.environment['ATELIER_PIPELINE_PORT']}"
        ) as channel:
            stub = product_pb2_grpc.ProductServiceStub(channel)

            def answered() -> bool:
                metadata = [("authorization", f"Bearer {token}")]
                try:
                    stub.GetSummary(product_pb2.GetSummaryRequest(), metadata=metadata, timeout=10)
                except grpc.RpcError:
                    return False
                return True

            until(answered, lambda: f"a call is answered, after:\n{''.join(self.lines)}")


def until(found: Callable[[], T], what: Callable[[], str]) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what()}"
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with private_command() as command:
        process = command.start("up")
        try:
            yield Up(command, process)
        finally:
            process.kill()
            process.wait()


@pytest.mark.long
def test_what_stands_in_the_way_of_postgres_is_said_once_until_it_is_gone(up: Up) -> None:
    pid, so_far = up.postgres_pid, len(up.lines)
    up.process.send_signal(signal.SIGSTOP)  # so that the suite isn't faster than the test
    os.kill(pid, signal.SIGKILL)

    with _taking(up.postgres_port):
        up.process.send_signal(signal.SIGCONT)
        up.says(
            "Postgres can't be started",
            f"port {up.postgres_port}",
            "is taken by another program",
            since=so_far,
        )
        # Other processes come back meanwhile.
        os.kill(up.child("shared.storage.http"), signal.SIGKILL)
        up.says("storage was ended by SIGKILL", since=so_far)
        url = f"http://127.0.0.1:{up.command.environment['ATELIER_STORAGE_HTTP_PORT']}/healthz"
        until(lambda: _healthy(url), lambda: "the storage answers")

    up.says("Postgres is back", since=so_far)
    up.serves()
    about = [line for line in up.lines[so_far:] if "Postgres" in line]
    assert len(about) == 3, about


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGSTOP, "was stopped by a signal"),
        (
            signal.SIGTERM,
            "was told to shut down",
        ),  # Postgres would wait forever for the services to disconnect
    ],
)
def test_postgres_comes_back_where_it_was(up: Up, number: signal.Signals, said: str) -> None:
    port, pid, so_far = up.postgres_port, up.postgres_pid, len(up.lines)
    os.kill(pid, number)
    up.says("Postgres", said, "starting it again", since=so_far)
    up.serves()
    assert up.postgres_port == port
    assert up.postgres_pid != pid
    assert len(up.lines) == so_far + 1, up.lines[so_far:]


@pytest.mark.long
def test_a_busy_session_of_a_killed_postgres_does_not_hold_up_the_next(up: Up) -> None:
    """The session looks at nothing but its query, so it doesn't notice that its server died."""
    with psycopg.connect(up.database_url(), autocommit=True) as watcher:
        session = psycopg.connect(up.database_url())
        busy = threading.Thread(target=_run_for_long, args=(session,))
        busy.start()
        asked = (
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT"
            " count%%'"
        )
        until(lambda: watcher.execute(asked).fetchone(), lambda: "the session is busy")
        os.kill(up.postgres_pid, signal.SIGKILL)

        busy.join(PATIENCE_SECONDS)
        assert not busy.is_alive()
    up.serves()


def _run_for_long(session: psycopg.Connection) -> None:
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT count(*) FROM generate_series(1, 1000000000000)")


@pytest.mark.parametrize(
    ("module", "name"), [("shared.storage.http", "storage"), ("cli.worker", "worker")]
)
def test_other_processes_come_back(up: Up, module: str, name: str) -> None:
    pid, so_far = up.child(module), len(up.lines)
    os.kill(pid, signal.SIGKILL)
    up.says(name, "was ended by SIGKILL", "starting it again", since=so_far)
    up.child(module, other_than=pid)


def _taking(port: int) -> socket.socket:
    def taken() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:  # a session of the killed server still holds the port
            return None

    found = until(taken, lambda: f"port {port} is free")
    assert found
    return found


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.long
def test_ctrl_c_ends_it_while_postgres_cannot_come_back(up: Up) -> None:
    """This test must be the last: it ends the suite of this module."""
    session = psycopg.connect(up.database_url())
    busy = threading.Thread(target=_run_for_long, args=(session,))
    busy.start()
    up.process.send_signal(signal.SIGSTOP)
    os.kill(up.postgres_pid, signal.SIGKILL)

    with _taking(up.postgres_port):
        so_far = len(up.lines)
        up.process.send_signal(signal.SIGCONT)
        up.says("Postgres can't be started", since=so_far)
        assert up.end() == 0

    busy.join(PATIENCE_SECONDS)
    assert up.command.left_behind() == []


@pytest.mark.faults
@pytest.mark.parametrize("last_line", ["Starting Postgres", "Ctrl-C stops"])
def test_a_terminal_that_is_gone_ends_nothing(atelier_command: Command, last_line: str) -> None:
    process = atelier_command.start("up")
    assert process.stdout is not None
    assert any(last_line in line for line in process.stdout)

    process.stdout.close()  # like `atelier up 2>&1 | head -1`
    process.stdout = None

    try:
        if last_line == "Ctrl-C stops":  # while it starts, a Postgres that dies ends the start
            data = atelier_command.state / "postgres" / "data"
            os.kill(int((data / "postmaster.pid").read_text().split("\n")[0]), signal.SIGKILL)
        until(
            lambda: atelier_command.run("health", "techfiles").returncode == 0,
            lambda: f"the suite is up; {process.poll()=}",
        )
        assert process.poll() is None
    finally:
        status = interrupt(process)
    # The interrupt may come before the last service answers: then the start was given up.
    assert status == 0 or (status == 1 and last_line == "Starting Postgres")
    assert atelier_command.left_behind() == []


@pytest.mark.faults
@pytest.mark.needs_mount
def test_postgres_and_the_rest_come_back_once_a_full_disk_has_room(
    atelier_command: Command,
) -> None:
    with mounted(atelier_command.state, "400m") as disk:
        process, filler = atelier_command.start("up"), Filler(disk)
        try:
            up = Up(atelier_command, process)
            so_far = len(up.lines)
            filler.leave(0)
            os.kill(up.postgres_pid, signal.SIGKILL)
            os.kill(up.child("shared.storage.http"), signal.SIGKILL)
            up.says("storage was ended", since=so_far)
            up.says("Postgres can't be started", "the disk that holds", "is full", since=so_far)
            filler.remove()
            up.says("Postgres is back", since=so_far)
            up.serves()
            assert len(up.lines) == so_far + 4, up.lines[so_far:]

            filler.leave(0)
            os.kill(up.postgres_pid, signal.SIGKILL)
            assert up.end() == 0
            assert atelier_command.left_behind() == []
        finally:
            process.kill()
            process.wait()


def _comeback() -> tuple[Comeback, list[str], list[float]]:
    said: list[str] = []
    now = [0.0]
    return Comeback("worker", said.append, lambda: now[0]), said, now


def test_what_dies_again_and_again_waits_longer_and_is_told_until_the_pauses_stop_growing() -> None:
    comeback, said, now = _comeback()
    waited = []
    for _ in range(20):
        began = now[0]
        comeback.ended("ended with status 1")
        while not comeback.take_turn():
            now[0] += 0.5
        waited.append(now[0] - began)
        now[0] += 1
    assert waited == [*PAUSES, *[PAUSES[-1]] * (20 - len(PAUSES))]
    assert len(said) == len(PAUSES)
    assert said[0] == "worker ended with status 1; starting it again"
    assert said[5] == "worker ended with status 1; starting it again in 2 s"
    assert said[-1] == "worker ended with status 1; starting it again every 8 s"

    now[0] += STEADY_SECONDS
    comeback.runs()
    assert said[-1] == "worker has been running for 20 s"

    comeback.ended("was ended by SIGKILL")
    assert comeback.take_turn()
    assert said[-1] == "worker was ended by SIGKILL; starting it again"


def test_what_was_tried_in_vain_is_told_once_and_is_as_new_when_it_is_back() -> None:
    comeback, said, now = _comeback()
    comeback.ended("was ended by SIGKILL")
    for problem in ("the disk is full",) * 12 + ("the port is taken",) * 3:
        now[0] += PAUSES[-1]
        assert comeback.take_turn()
        comeback.failed(problem)
    assert said[1:] == [
        f"worker can't be started: the {what}; trying again"
        for what in ("disk is full", "port is taken")
    ]
    assert not comeback.take_turn()

    comeback.hurry()
    assert comeback.take_turn()
    comeback.runs()
    assert said[3:] == ["worker is back"]

    comeback.ended("ended with status 0")
    assert comeback.take_turn()
