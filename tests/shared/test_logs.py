"""A line that can't be logged fails nothing: odd values, a full disk, a reader that is gone or
doesn't read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.suite import ROOT

SET_UP = """
import contextlib, logging, os, resource, sys, warnings
import structlog
from shared import telemetry
telemetry.set_up("example", "info")
log = structlog.get_logger("example")
"""
# Every way in which a process writes output. The last two are used when the interpreter has almost
# ended.
ALL_WAYS = (
    SET_UP
    + """
import threading
class Late:
    def __del__(self):
        raise ValueError("from a finaliser")
late = Late()
log.info("by structlog")
logging.getLogger("library").warning("by %s", "logging")
logging.getLogger("library").warning("%d", "no number")
warnings.warn("a warning")
print("to standard error", file=sys.stderr)
print("to standard output")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
del late
sys.modules["kept until the end"] = Late()
"""
)


def start(code: str, **options: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, **options)


def events(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


ODD = {
    "a repr that raises": "type('Bad', (), {'__repr__': lambda self: 1 / 0})()",
    "one inside of something": "{'inner': [type('Bad', (), {'__repr__': lambda self: 1 / 0})()]}",
    "a lone surrogate": "'\\udc80'",
    "bytes": "b'\\xff\\x00'",
    "a very long text": "'x' * 2_000_000",
    "very many bytes": "b'x' * 2_000_000",
    "a very long list": "list(range(100_000))",
    "a number of very many digits": "10 ** 10_000",
    "no number": "float('nan')",
    "what holds itself": "(lambda found: (found.append(found), found)[1])([])",
    "what is nested too deeply": (
        "__import__('functools').reduce(lambda inner, _: [inner], range(100_000), [])"
    ),
    "keys that are no text": "{(1, 2): 3, b'k': 4}",
    "line breaks": "'a\\nb\\u2028c\\r'",
}


@pytest.mark.parametrize("given", ["structlog", "logging"])
def test_any_value_makes_one_line_of_json(given: str) -> None:
    say = {
        "structlog": "log.info('odd', value=value, kept=7)",
        "logging": "logging.getLogger('library').warning('odd %s', value)",
    }[given]
    code = SET_UP + "".join(f"value = {value}\n{say}\n" for value in ODD.values())
    process = start(code, stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 0, said

    found = events(said)
    assert len(found) == len(ODD)
    for name, event in zip(ODD, found, strict=True):
        assert event["service"] == "example", name
        assert event["event"].startswith("odd"), name
        assert given == "logging" or event["kept"] == 7, name
    assert max(map(len, said.splitlines())) < 100_000


def test_exceptions_are_shown_whatever_they_are() -> None:
    code = (
        SET_UP + "class Bad(Exception):\n"
        "    def __str__(self): raise ValueError\n"
        "for error in (Bad(), OSError('x' * 1_000_000), KeyError('last words')):\n"
        "    try: raise error\n"
        "    except Exception: log.exception('failed')\n"
        "    log.error('failed', exc_info=error)\n"
        "log.error('none', exc_info=True)\n"
    )
    process = start(code, stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 0, said

    found = events(said)
    assert [event["event"] for event in found] == ["failed"] * 6 + ["none"]
    assert all("Traceback" in event["exception"] for event in found[:6])
    assert all(event["exception"].endswith("KeyError: 'last words'") for event in found[4:6])


def test_secrets_are_hidden_by_name() -> None:
    process = start(
        SET_UP + "log.info('in', api_token='hunter2', Password='hunter2')", stderr=subprocess.PIPE
    )
    _, said = process.communicate()
    assert b"hunter2" not in said
    assert b"hidden" in said


@pytest.mark.parametrize(
    ("outputs", "printed"),
    [
        ("2>/dev/full", True),
        (">/dev/full 2>/dev/full", False),
        ("2>&-", True),
        (">&- 2>&-", False),
        ("<&- >&- 2>&-", False),
        ("<&- 2>&-", True),
    ],
)
def test_a_full_or_closed_output_ends_nothing(outputs: str, printed: bool, tmp_path: Path) -> None:
    # Files that are opened later must not take the descriptors, and the lines, of closed outputs.
    mine = [tmp_path / str(number) for number in range(4)]
    code = f"""{ALL_WAYS}
mine = [open(name, 'w') for name in {[str(path) for path in mine]}]
log.info('after')
print('after')
with contextlib.suppress(OSError): os.write(2, b'after')
for file in mine: file.write('mine')
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    shell = ["sh", "-c", f'"$0" -c "$1" {outputs}', sys.executable, code]

    ended = subprocess.run(shell, env=environment, cwd=ROOT, check=False, capture_output=True)
    assert ended.returncode == 0
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert ended.stdout == (b"to standard output\nafter\n" if printed else b"")


def test_a_reader_that_has_gone_ends_nothing() -> None:
    process = start(
        f"sys = __import__('sys'); sys.stdin.read()\n{ALL_WAYS}",
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stderr

    process.stderr.close()
    process.stdin.close()
    assert process.wait() == 0


def test_all_that_is_said_arrives_while_it_can() -> None:
    process = start(ALL_WAYS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, said = process.communicate()
    assert process.returncode == 0
    assert out == b"to standard output\n"
    for words in (
        "by structlog",
        "by logging",
        "no number",
        "a warning",
        "to standard error",
        "ZeroDivisionError",
    ):
        assert words.encode() in said, words
    assert said.count(b"from a finaliser") == 2

    [warned] = [
        line for line in said.splitlines() if b"a warning" in line and line.startswith(b"{")
    ]
    assert json.loads(warned)["level"] == "warning"


LOSING = """
for number in range(2_000):
    log.info("many", number=number)
try:
    os.write(2, b"x" * 4_096)  # as a library in C does
except BlockingIOError:
    print("said", flush=True)
sys.stdin.readline()
log.info("again")
"""


def test_a_reader_that_does_not_read_holds_up_nothing_and_is_told_what_it_missed() -> None:
    process = start(
        SET_UP + LOSING, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr
    assert process.stdout.readline() == b"said\n"  # although a pipe holds only a fourth of it

    os.set_blocking(process.stderr.fileno(), False)
    held = process.stderr.read()
    os.set_blocking(process.stderr.fileno(), True)
    process.stdin.write(b"\n")
    process.stdin.close()
    told, again = events(process.stderr.read())
    assert process.wait() == 0

    process.stdout.close()
    process.stderr.close()
    assert (told["event"], told["lost"]) == ("log lines were lost", 2_000 - len(events(held)))
    assert 0 < told["lost"] < 2_000
    assert again["event"] == "again"


def test_a_disk_that_was_full_is_told_of_in_a_line_of_its_own(tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk: it cuts the last line in the same
    way."""
    code = (
        SET_UP
        + """
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, most))
for number in range(100):
    log.info("many", number=number)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.info("again")
log.info("again")
"""
    )
    log = tmp_path / "log"
    with log.open("wb") as err:
        assert start(code, stderr=err).wait() == 0

    lines = log.read_bytes().splitlines()
    [cut] = [line for line in lines if not line.endswith(b"}")]
    whole = events(b"\n".join(line for line in lines if line != cut))
    before = [event for event in whole if event["event"] == "many"]
    assert [event["event"] for event in whole[len(before) :]] == [
        "log lines were lost",
        "again",
        "again",
    ]
    assert whole[len(before)]["lost"] == 100 - len(before)
    assert before


@pytest.mark.long
def test_metrics_live_in_no_file(tmp_path: Path) -> None:
    """A process that counts in a mapped file is killed by a signal when the disk is full."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    code = (
        "import services.assets.__main__\nfrom shared import telemetry\ntelemetry.CALLS.labels('m',"
        " 'OK').inc()"
    )

    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == []
