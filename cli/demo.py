"""Runs the demo's client against the running suite, or against one started for the demo."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from cli.comeback import Report
from cli.state import LOCAL_ISSUER, State
from cli.suite import Options, Problem, Suite, interruptible, is_serving, ports
from shared.rpc import auth
from shared.settings import SERVICES

INTERRUPTED = 130


def run_client(
    client: Sequence[str],
    state: State,
    console: Console,
    report: Report,
    environment: Callable[[str], dict[str, str]],
    *,
    own: bool = False,
) -> int:
    """Returns the client's exit status, or 130 after Ctrl-C. Everything started here has ended by
    then. `own`: the settings are for a suite of the demo's own, so that none may be running."""
    state.prepare()
    suite: Suite | None = None
    with interruptible() as stopped:
        try:
            running = not _free(state) and all(is_serving(ports()[name]) for name in SERVICES)
            if running and own:
                raise Problem(
                    "a suite is running with settings of its own; stop it, or leave --provider out"
                )
            suite = None if running else Suite(state, Options(), report)
            if suite:
                suite.stopped = stopped
                suite.start()
            token = auth.sign(
                auth.load_key(state.keys / "people.jwk"),
                issuer=LOCAL_ISSUER,
                subject="demo",
                role="user",
                seconds=3600,
            )
            addresses = [f"--{name}=127.0.0.1:{ports()[name]}" for name in SERVICES]
            process = subprocess.Popen(
                [*client, *addresses], env=environment(token), start_new_session=True
            )
            try:
                return _wait(process, stopped)
            finally:
                _end(process)
        except Problem as problem:
            console.print(f"[bold red]atelier:[/bold red] {escape(str(problem))}", soft_wrap=True)
            return 1
        finally:
            if suite:
                suite.stop()


def _free(state: State) -> bool:
    """Returns True if no suite holds the state directory's lock. Releases the lock at once, because
    the suite takes it itself."""
    probe = State(state.directory)
    if not probe.lock():
        return False
    probe.unlock()
    return True


def _wait(process: "subprocess.Popen[bytes]", stopped: Callable[[], bool]) -> int:
    while process.poll() is None:
        if stopped():
            return INTERRUPTED
        time.sleep(0.05)
    return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
