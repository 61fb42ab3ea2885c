"""Writes log lines, a JSON object each, to a standard error that never raises.

No call, job, start or shutdown may fail because a disk is full, a pipe is closed or unread, or the
`repr` of a value raises. A line that can't be written is lost and counted, and the next line that
can be written is preceded by one with the number of lost lines.
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import select
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

_LONGEST_VALUE = 8_192  # characters
_LONGEST_LINE = 32_768
_WAIT_MILLISECONDS = 100
_WAIT_APART_SECONDS = 1.0
_SECRET_WORDS = ("password", "token", "secret", "authorization", "signature", "dsn")
# json.dumps would make an encoder for every line.
_ENCODER = json.JSONEncoder(default=repr, allow_nan=False)


class LogStream(io.TextIOBase):
    """Standard output (1) or standard error (2) as a stream that never raises and hardly waits.

    It waits for a full pipe or a stopped terminal at most once a second, and then for 0.1 s: that
    is enough for a slow reader, and an event loop can bear it if there is no reader. `tell(lost)`
    makes the line that says how many lines were lost.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self, number: int, tell: Callable[[int], str] = "{} log lines were lost\n".format
    ) -> None:
        self.lost = 0
        self._untold = 0
        self._tell = tell
        self._ended = True  # True if the last byte written was a line break
        self._patient_from = 0.0
        # The lock is reentrant: a finaliser or signal handler that runs during a write may write
        # too.
        self._lock = threading.RLock()
        self._descriptor = _descriptor(number)

    def write(self, text: str) -> int:
        with self._lock:
            try:
                if self._untold:
                    self._send(("" if self._ended else "\n") + self._tell(self._untold))
                    self._untold = 0
                self._send(text)
            except Exception:
                lines = text.count("\n")
                self.lost += lines
                self._untold += lines
        return len(text)

    def _send(self, text: str) -> None:
        data, sent = text.encode(self.encoding, self.errors), 0
        try:
            while sent < len(data):
                try:
                    written = os.write(self._descriptor, data[sent:])
                except BlockingIOError:
                    if not self._waited():
                        raise
                    continue
                if not written:
                    raise OSError(errno.EIO, "nothing is taken")
                sent += written
        finally:
            if sent:
                self._ended = data[sent - 1 : sent] == b"\n"

    def _waited(self) -> bool:
        """Waits for the reader unless it did so less than a second ago; returns whether there is
        room."""
        now = time.monotonic()
        if now < self._patient_from:
            return False
        self._patient_from = now + _WAIT_APART_SECONDS
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        return bool(room.poll(_WAIT_MILLISECONDS))

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        """Does nothing, since nothing is buffered."""

    def close(self) -> None:
        """Does nothing: the last messages are written while everything else is closed."""


def _descriptor(number: int) -> int:
    """Returns a non-blocking descriptor for the file of a standard descriptor."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        # A closed standard descriptor becomes /dev/null, so that no file opened later gets its
        # number.
        pass
    if (sys.stdout, sys.stderr)[number - 1] is None:
        return null
    os.close(null)
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
        try:
            # The file is opened again: O_NONBLOCK belongs to the open file, which a shell or
            # another program shares.
            return os.open(
                f"/dev/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
            )
        except OSError:  # a socket, or a pipe of another account
            os.set_blocking(number, False)
    return number


def keep_stderr(tell: Callable[[int], str] | None = None) -> LogStream:
    """Replaces this process's `sys.stderr` by a LogStream and returns it."""
    stream = LogStream(2, tell) if tell else LogStream(2)
    sys.stderr = stream
    sys.__stderr__ = stream  # type: ignore[misc, assignment]  # what Python itself says at its end goes there
    return stream


def set_up(service: str) -> tuple[LogStream, LogStream]:
    """Makes both outputs of this process LogStreams and returns them. Messages of the standard
    library's loggers and warnings become lines of standard error."""

    def tell(lost: int) -> str:
        return line(service, "warning", {"event": "log lines were lost", "lost": lost})

    out, err = LogStream(1, tell), keep_stderr(tell)
    sys.stdout = out
    sys.__stdout__ = out  # type: ignore[misc, assignment]
    for number, stream in ((1, out), (2, err)):  # for C libraries and for child processes
        with contextlib.suppress(OSError):
            os.dup2(stream.fileno(), number)
    logging.basicConfig(level=logging.WARNING, handlers=[LineHandler(service, err)], force=True)
    logging.captureWarnings(True)
    return out, err


class LineHandler(logging.Handler):
    """Writes records of the standard library's loggers as lines. A record's `fields` are added to
    its text."""

    def __init__(self, service: str, stream: LogStream) -> None:
        super().__init__()
        self._service = service
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # the arguments don't match the text, or their repr raises
            text = f"{_plain(record.msg, _LONGEST_VALUE)} % {_plain(record.args, _LONGEST_VALUE)}"
        event = {"event": text, "exc_info": record.exc_info, **getattr(record, "fields", {})}
        self._stream.write(line(self._service, record.levelname.lower(), event))


def line(service: str, level: str, event: dict[str, Any]) -> str:
    """Returns a log line with its line break. Never raises: replaces values that can't be shown and
    cuts values that are too long."""
    try:
        return _line(service, level, event)
    except Exception as error:
        kept = {
            "event": "a log line could not be made",
            "error": type(error).__name__,
            "service": service,
        }
        return _ENCODER.encode(kept | {"level": level}) + "\n"


def _line(service: str, level: str, event: dict[str, Any]) -> str:
    event = {"service": service, **event, "level": level, "timestamp": _now()}
    if error := event.pop("exc_info", None):
        event["exception"] = _exception(error)
    for name, value in event.items():
        if _is_secret(name):
            event[name] = "hidden"
        elif isinstance(value, str | bytes) and len(value) > _LONGEST_VALUE:
            event[name] = _shortened(value, _LONGEST_VALUE)
    with contextlib.suppress(Exception):
        encoded = _ENCODER.encode(event)
        if len(encoded) <= _LONGEST_LINE:
            return encoded + "\n"
    share = _LONGEST_LINE // len(event)
    return _ENCODER.encode({name: _plain(value, share) for name, value in event.items()}) + "\n"


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z"


@functools.cache  # names come from our own source: a few dozen
def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def _exception(given: Any) -> str:
    """Returns the traceback of an exception, of an exc_info triple, or (for True) of the exception
    being handled."""
    kind: type[BaseException] | None
    error: BaseException | None
    trace: TracebackType | None
    if isinstance(given, BaseException):
        kind, error, trace = type(given), given, given.__traceback__
    else:
        kind, error, trace = given if isinstance(given, tuple) else sys.exc_info()
    return "".join(traceback.format_exception(kind, error, trace)).rstrip("\n") if kind else ""


def _plain(value: Any, most: int) -> Any:
    """Returns the value if it can be encoded and is short, else its text, cut to about `most`
    characters."""
    with contextlib.suppress(Exception):
        if len(_ENCODER.encode(value)) <= most:
            return value
    try:
        return _shortened(value if isinstance(value, str | bytes) else repr(value), most)
    except Exception as error:
        return f"<{type(value).__name__}, of which repr raises {type(error).__name__}>"


def _shortened(value: str | bytes, most: int) -> str:
    """Returns the value's beginning and end: a traceback's last lines say most."""
    left_out = len(value) - most
    if left_out <= 0:
        return value if isinstance(value, str) else repr(value)
    head, tail = value[: most // 2], value[-(most // 2) :]
    shown = (part if isinstance(part, str) else repr(part) for part in (head, tail))
    return f" ... {left_out} left out ... ".join(shown)
