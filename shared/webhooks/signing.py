"""Signs deliveries as Standard Webhooks specifies, version v1."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

_PREFIX = "whsec_"


def new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signed_headers(
    keys: Sequence[str], delivery_id: str, at: datetime, body: bytes
) -> dict[str, str]:
    """Returns the headers of a delivery, with one signature per secret: a receiver needs to know
    only one of them."""
    seconds = str(int(at.timestamp()))
    content = f"{delivery_id}.{seconds}.".encode() + body
    return {
        "Content-Type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(f"v1,{_signature(key, content)}" for key in keys),
    }


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
