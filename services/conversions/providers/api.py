"""The HTTP interface of a hosted provider: requests with its key, answers that are read with
suspicion, and failures in our words."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from urllib3.filepost import encode_multipart_formdata

from services.conversions import rules
from services.conversions.providers.contract import ProviderFailed
from shared.formats.texts import storable
from shared.outbound import Outbound, OutboundFailed, OutboundRefused, Reply, parse_url
from shared.settings import Settings

_ANSWER_BYTES = 64 * 1024 * 1024  # a picture of 45 MB in base64; what is stored has a lower limit
PICTURE_BYTES = 40 * 1024 * 1024
_TEXT = 500  # characters of a provider's message that are kept
_FETCH_SECONDS = 120.0
_PASSING = ("CONNECT", "TLS", "TIMEOUT", "PROTOCOL")  # of a transfer that can be repeated
# The first characters of keys of known providers: a message may name another key than ours.
_KEY = re.compile(r"\b(?:sk-|AIza|r8_|fa-|key-)[\w*.-]{6,}")
_ACCOUNT_STATUSES = (401, 402, 403, 404)
_BUSY_STATUSES = (408, 409, 425)
# A gateway had reached the model and gave up waiting: 520 and 524 are Cloudflare's.
_GATEWAY_STATUSES = (504, 520, 524)

Json = Any  # what a foreign server sent: anything that JSON can hold


class Api:
    """One provider's interface at `base_url`.

    `headers` go with every request; `secret` is the key in them, which no message may show.
    `result_hosts` are hosts besides the provider's own from which results are fetched, such as
    `fal.media`; their subdomains count too.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        secret: str,
        result_hosts: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._base = base_url.rstrip("/")
        self._headers = headers
        self._secret = secret
        self._result_hosts = tuple(result_hosts)
        self._own = Outbound(settings, only=[base_url])
        self._results = Outbound(settings)

    async def close(self) -> None:
        await self._own.close()
        await self._results.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        content: object = None,
        form: Sequence[tuple[str, object]] = (),
        billed: bool = False,
    ) -> Reply:
        """Sends a request with `content` as JSON or with a multipart form, and returns the answer,
        whatever its status. `billed`: the provider may charge for it. Raises ProviderFailed if
        there is no answer."""
        headers = {"Accept": "application/json", **self._headers}
        body: bytes | None = None
        if form:
            body, headers["Content-Type"] = encode_multipart_formdata(form)  # type: ignore[arg-type]
        elif content is not None:
            body, headers["Content-Type"] = json.dumps(content).encode(), "application/json"
        try:
            return await self._own.call(
                method,
                f"{self._base}{path}",
                headers,
                body,
                timeout=seconds,
                max_bytes=_ANSWER_BYTES,
            )
        except OutboundRefused as refusal:
            raise ProviderFailed(rules.UNAVAILABLE, f"{self.name}: {refusal}") from None
        except OutboundFailed as failure:
            raise self._unanswered(failure, billed) from None

    def _unanswered(self, failure: OutboundFailed, billed: bool) -> ProviderFailed:
        text = f"{self.name}: {failure.text}"
        if failure.error_class in ("CONNECT", "TLS"):  # nothing was sent
            return ProviderFailed(rules.UNAVAILABLE, text)
        charge = rules.POSSIBLY_CHARGED if billed else rules.NOT_CHARGED
        if failure.error_class == "TIMEOUT":
            return ProviderFailed(rules.TIMED_OUT, text, charge=charge)
        # A call that may have cost money must not be repeated for as long as a job may wait.
        return ProviderFailed(
            rules.BAD_ANSWER if billed else rules.UNAVAILABLE, text, charge=charge
        )

    def json(self, reply: Reply, *, billed: bool = False) -> Json:
        """Returns the JSON of a successful answer. Raises ProviderFailed if it is none."""
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            charge = rules.POSSIBLY_CHARGED if billed else rules.NOT_CHARGED
            kind = reply.headers.get("content-type", "").partition(";")[0] or "nothing"
            text = f"{self.name} answered {reply.status} with {kind[:60]} instead of JSON"
            raise ProviderFailed(rules.BAD_ANSWER, text, charge=charge) from None

    def failed(
        self, reply: Reply, said: str, *, retry_after: float = 0.0, billed: bool = False
    ) -> ProviderFailed:
        """Returns the failure that an answer with an error status means where the provider has no
        word of its own for it. `said`: its message. `billed`: the provider may charge for the
        request."""
        text = f"{self.name} answered {reply.status}: {self.clean(said) or 'without a word'}"
        if reply.status in _ACCOUNT_STATUSES:
            return ProviderFailed(rules.ACCOUNT, text)
        if reply.status == 429:
            return ProviderFailed(
                rules.RATE_LIMITED, text, retry_after=retry_after or reply.retry_after
            )
        if billed and reply.status in _GATEWAY_STATUSES:  # behind it the model may go on working
            return ProviderFailed(rules.TIMED_OUT, text, charge=rules.POSSIBLY_CHARGED)
        if reply.status >= 500 or reply.status in _BUSY_STATUSES:
            return ProviderFailed(rules.UNAVAILABLE, text, retry_after=reply.retry_after)
        if reply.status >= 400:
            return ProviderFailed(rules.BAD_INPUT, text)
        return ProviderFailed(rules.BAD_ANSWER, text, charge=rules.POSSIBLY_CHARGED)

    def clean(self, text: object) -> str:
        """Returns a provider's message as one short line that shows no key."""
        line = " ".join(storable(str(text or "")).split())
        if self._secret:
            line = line.replace(self._secret, "[key]")
        line = _KEY.sub("[key]", line)
        return line if len(line) <= _TEXT else f"{line[: _TEXT - 1]}…"

    async def fetch(self, url: str, path: Path) -> None:
        """Writes the result at a URL of the provider's answer to `path`. Raises ProviderFailed if
        its host is neither the provider's nor one of its result hosts."""
        try:
            place = parse_url(url)
        except OutboundRefused as refusal:
            text = f"{self.name} names a result at no usable URL: {self.clean(refusal)}"
            raise ProviderFailed(rules.BAD_ANSWER, text, charge=rules.CHARGED) from None
        host, base = place.host, parse_url(self._base)
        own = (place.scheme, host, place.port) == (base.scheme, base.host, base.port)
        known = any(host == each or host.endswith(f".{each}") for each in self._result_hosts)
        if not own and not known:
            text = f"{self.name} names a result at {self.clean(host)[:100]}, which isn't its own"
            raise ProviderFailed(rules.BAD_ANSWER, text, charge=rules.CHARGED)
        out = self._own if own else self._results
        try:
            await out.fetch(url, path, max_bytes=PICTURE_BYTES, timeout=_FETCH_SECONDS)
        except OutboundRefused as refusal:
            raise ProviderFailed(
                rules.BAD_ANSWER, f"{self.name}'s result: {refusal}", charge=rules.CHARGED
            ) from None
        except OutboundFailed as failure:
            passing = failure.error_class in _PASSING or failure.status in (408, 425, 429)
            passing = passing or failure.status >= 500
            raise ProviderFailed(
                rules.UNAVAILABLE if passing else rules.BAD_ANSWER,
                f"{self.name}'s result: {failure.text}",
                charge=rules.CHARGED,
            ) from None


def callback_url(settings: Settings, provider: str) -> str:
    """Returns where the provider shall call back when a call has ended; "" for nowhere."""
    base = settings.model_callback_url.rstrip("/")
    return f"{base}/{provider}" if base else ""


def item(value: Json, *path: str | int) -> Json:
    """Returns what stands at a path of keys and positions, or None if anything on the way isn't
    there."""
    for key in path:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = (
                value[key] if isinstance(value, list) and -len(value) <= key < len(value) else None
            )
    return value


def numbers(values: Json, prefix: str = "") -> dict[str, float | int]:
    """Returns the numbers of a provider's account of its usage, nested ones by dotted names."""
    found: dict[str, float | int] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        name = storable(f"{prefix}{key}")[:60]
        if isinstance(value, dict):
            found |= numbers(value, f"{name}.")
        elif _is_figure(value):
            found[name] = value
    return dict(list(found.items())[:40])


def _is_figure(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
