"""Whether a webhook comes from the provider that it names: the signatures of fal and Replicate.

Even a webhook that is genuine is a hint only: the result is what the provider answers when it is
asked. fal: https://fal.ai/docs/documentation/model-apis/inference/webhooks; Replicate signs as
Standard Webhooks specifies: https://replicate.com/docs/topics/webhooks/verify-webhook (both read
November 2026).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.conversions.providers.api import Json, item
from shared.webhooks.signing import signed_headers

_OLDEST_SECONDS = 300  # and no further in the future
_FAL = "x-fal-webhook-"


class CallbackRefused(Exception):
    """Raised if a webhook isn't what it claims to be. The text says why, for a log."""


def check_sent(headers: Mapping[str, str], at: str, others: Sequence[str], now: datetime) -> None:
    """Raises CallbackRefused if a webhook lacks a header, or its time, in the header `at`, isn't
    now: for what need not be compared with any key."""
    for name in others:
        _header(headers, name)
    _check_age(_header(headers, at), now)


def fal_keys(jwks: Json) -> list[Ed25519PublicKey]:
    """Returns the keys of fal's key set, without those of other kinds."""
    found = []
    keys = item(jwks, "keys")
    for key in keys if isinstance(keys, list) else []:
        if item(key, "kty") == "OKP" and item(key, "crv") == "Ed25519":
            text = str(item(key, "x"))
            try:
                content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
                found.append(Ed25519PublicKey.from_public_bytes(content))
            except ValueError:
                continue
    return found


def check_fal(
    headers: Mapping[str, str], body: bytes, keys: Sequence[Ed25519PublicKey], now: datetime
) -> None:
    """Raises CallbackRefused unless one of fal's keys signed the webhook. `headers`: with names in
    lower case."""
    names = ("request-id", "user-id", "timestamp", "signature")
    request_id, user_id, timestamp, signature = (_header(headers, _FAL + name) for name in names)
    _check_age(timestamp, now)
    digest = hashlib.sha256(body).hexdigest()
    content = f"{request_id}\n{user_id}\n{timestamp}\n{digest}".encode()
    try:
        raw = binascii.unhexlify(signature)
    except ValueError:
        raise CallbackRefused("the signature is not hexadecimal") from None
    for key in keys:
        try:
            key.verify(raw, content)
            return
        except InvalidSignature:
            continue
    raise CallbackRefused("none of fal's keys made the signature")


def check_replicate(headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> None:
    """Raises CallbackRefused unless the secret of the account signed the webhook. `headers`: with
    names in lower case."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    webhook_id, timestamp, signatures = (_header(headers, name) for name in names)
    sent = _check_age(timestamp, now)
    expected = signed_headers([secret], webhook_id, sent, body)["webhook-signature"].encode()
    # During a change of the secret there are two signatures.
    if not any(hmac.compare_digest(each.encode(), expected) for each in signatures.split(" ")):
        raise CallbackRefused("the account's secret didn't make the signature")


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise CallbackRefused(f"header {name} is missing")
    return value


def _check_age(timestamp: str, now: datetime) -> datetime:
    """Returns when a webhook was sent. Raises CallbackRefused if that isn't about now: somebody may
    have recorded it."""
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 11):
        raise CallbackRefused("the timestamp is no number of seconds")
    sent = datetime.fromtimestamp(int(timestamp), UTC)
    if abs((now - sent).total_seconds()) > _OLDEST_SECONDS:
        raise CallbackRefused(f"it was sent at {sent:%Y-%m-%d %H:%M:%S} UTC, which isn't now")
    return sent
