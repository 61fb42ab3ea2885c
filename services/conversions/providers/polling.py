"""Providers that give a handle at once and the result later: submit once, then ask until it is
there.

What was submitted is paid for, so that a poll which fails in passing ends nothing, and a later
attempt of the job asks with the same handle again.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.conversions import rules
from services.conversions.providers.api import Api
from services.conversions.providers.contract import Call, ProviderFailed
from shared.outbound import Reply

POLL_SECONDS = 30.0  # for one poll
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _GROWTH = 1.0, 5.0, 1.5
_LAST_SECONDS = 5.0  # for a handle that is on its way when the attempt is cancelled
_PASSING = frozenset({rules.UNAVAILABLE, rules.RATE_LIMITED, rules.TIMED_OUT, rules.BAD_ANSWER})
_PATH = re.compile(r"(?:/[\w.~:-]+)+", re.ASCII)
_MOST_CHARACTERS = 500

QUEUED, AT_WORK = 0.1, 0.3  # progress where the provider only says that much


@dataclass(frozen=True)
class Working:
    """The provider is still at work. `fraction`: how far it is, 0 to 1."""

    fraction: float


Submit = Callable[[], Awaitable[str]]
Look = Callable[[str], Awaitable[Working | Reply]]


async def result(call: Call, submit: Submit, look: Look, *, name: str, seconds: float) -> Reply:
    """Returns the provider's last answer about a call, good or bad.

    `submit` begins the call, sends it and returns its handle; it isn't asked if an earlier attempt
    has a handle. `look` asks the provider once, and raises ProviderFailed if that fails: with
    charge NOT_CHARGED for what may pass. Raises ProviderFailed: TIMED_OUT after `seconds`;
    UNAVAILABLE if the provider couldn't be asked at the end, so that the job asks again later.
    """
    handle = call.handle or await _submitted(call, submit)
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    pause, reached = _FIRST_PAUSE_SECONDS, 0.0
    while True:
        failure: ProviderFailed | None = None
        wait = pause
        try:
            seen = await look(handle)
            if isinstance(seen, Reply):
                return seen
            if seen.fraction > reached:
                reached = seen.fraction
                await call.advances(reached)
        except ProviderFailed as failed:
            if failed.error_class not in _PASSING or failed.charge != rules.NOT_CHARGED:
                raise
            failure, wait = failed, max(pause, failed.retry_after)
        left = deadline - clock()
        if left <= 0:
            raise _out_of_time(name, seconds, failure)
        await call.pauses(min(wait, left))
        pause = min(pause * _GROWTH, _LONGEST_PAUSE_SECONDS)


def _out_of_time(name: str, seconds: float, failure: ProviderFailed | None) -> ProviderFailed:
    if failure is None:
        text = f"{name} didn't finish within {seconds:g} s"
        return ProviderFailed(rules.TIMED_OUT, text, charge=rules.POSSIBLY_CHARGED)
    text = f"{name} took a call, but can't be asked for its result now: {failure.message}"
    return ProviderFailed(
        rules.UNAVAILABLE, text, retry_after=failure.retry_after, charge=rules.CHARGED
    )


async def _submitted(call: Call, submit: Submit) -> str:
    """Submits a call and records its handle. A cancellation waits a moment for that: without its
    handle a call is paid for nothing."""

    async def submit_and_record() -> str:
        handle = await submit()
        await call.submitted(handle)
        return handle

    sending = asyncio.ensure_future(submit_and_record())
    sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait([sending], timeout=_LAST_SECONDS)
        sending.cancel()
        raise


def unknown(reply: Reply, failure: ProviderFailed) -> ProviderFailed:
    """Returns what an error status means that answers a poll, where `failure` is what it would mean
    elsewhere: it says nothing about the input."""
    if failure.error_class == rules.ACCOUNT and reply.status != 404:
        # The result is there, for whoever has a key that is accepted.
        failure.charge = rules.CHARGED
    elif failure.error_class not in _PASSING:
        failure.error_class, failure.charge = rules.BAD_ANSWER, rules.POSSIBLY_CHARGED
        failure.message = f"a result can't be asked for any more: {failure.message}"
    return failure


def path_of(api: Api, url: object) -> str:
    """Returns the path of a URL of the provider's answer: its host is never followed. Raises
    ProviderFailed if it is no plain one."""
    try:
        path = urlsplit(url).path if isinstance(url, str) else ""
    except ValueError:
        path = ""
    if not _PATH.fullmatch(path) or "/.." in path or len(path) > _MOST_CHARACTERS:
        text = f"{api.name} took the call, but gave nothing to ask for its result with"
        raise ProviderFailed(rules.BAD_ANSWER, text, charge=rules.POSSIBLY_CHARGED)
    return path


async def save(api: Api, where: object, path: Path) -> None:
    """Writes the picture that an answer names to a file: by a URL, or in itself as a data URI.
    Raises ProviderFailed."""
    text = where if isinstance(where, str) else ""
    if text.startswith(("https://", "http://")):
        await api.fetch(text, path)
        return
    _, found, data = text.partition(";base64,")
    try:
        content = base64.b64decode(data, validate=True) if text.startswith("data:") else b""
    except binascii.Error:
        content = b""
    if not found or not content:
        text = f"{api.name} answered without a picture"
        raise ProviderFailed(rules.BAD_ANSWER, text, charge=rules.CHARGED)
    path.write_bytes(content)
