"""Signatures of webhooks. What signs them here is a library of each scheme, and Replicate's own
library judges them, too."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey, KeySet, OKPKey
from replicate.webhook import Webhooks, WebhookSigningSecret, WebhookValidationError
from standardwebhooks import Webhook

from services.conversions.providers.callbacks import (
    CallbackRefused,
    check_fal,
    check_replicate,
    fal_keys,
)

NOW = datetime(2026, 11, 28, 10, tzinfo=UTC)
BODY = json.dumps({"id": "prediction1", "status": "succeeded", "öutput": None}).encode()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LATE = timedelta(seconds=301)


def of_replicate(secret: str = SECRET, at: datetime = NOW) -> dict[str, str]:
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", at, BODY.decode()),
    }


def accepted_by_replicate(headers: dict[str, str], body: bytes) -> bool:
    secret = WebhookSigningSecret(key=SECRET)
    try:
        Webhooks.validate(headers=headers, body=body.decode(), secret=secret)
    except WebhookValidationError:
        return False
    return True


def test_a_webhook_of_replicate_is_accepted_as_its_library_accepts_it() -> None:
    headers = of_replicate()
    check_replicate(headers, BODY, SECRET, NOW)
    assert accepted_by_replicate(headers, BODY)
    two = {**headers, "webhook-signature": f"v1,YWJj {headers['webhook-signature']}"}
    check_replicate(two, BODY, SECRET, NOW)
    assert accepted_by_replicate(two, BODY)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(of_replicate(), BODY + b" ", id="another body"),
        pytest.param(of_replicate("whsec_" + "A" * 32), BODY, id="another secret"),
        pytest.param(of_replicate(at=NOW - LATE), BODY, id="old"),
        pytest.param(of_replicate(at=NOW + LATE), BODY, id="of the future"),
        pytest.param({**of_replicate(), "webhook-id": "msg_2"}, BODY, id="another id"),
        pytest.param({**of_replicate(), "webhook-timestamp": "soon"}, BODY, id="no time"),
        pytest.param({**of_replicate(), "webhook-timestamp": "9" * 30}, BODY, id="far time"),
        pytest.param({**of_replicate(), "webhook-signature": "v1,ä"}, BODY, id="no signature"),
        pytest.param({}, BODY, id="no headers"),
    ],
)
def test_a_webhook_that_is_not_of_replicate_is_refused(
    headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(CallbackRefused):
        check_replicate(headers, body, SECRET, NOW)


KEY = OKPKey.generate_key("Ed25519")
OTHER = OKPKey.generate_key("Ed25519")


def of_fal(
    key: OKPKey = KEY, at: datetime = NOW, body: bytes = BODY, **more: str
) -> dict[str, str]:
    seconds = str(int(at.timestamp()))
    signed = "\n".join(["request-1", "user-1", seconds, hashlib.sha256(BODY).hexdigest()])
    private = key.private_key
    assert isinstance(private, Ed25519PrivateKey)
    headers = {
        "request-id": "request-1",
        "user-id": "user-1",
        "timestamp": seconds,
        "signature": private.sign(signed.encode()).hex(),
    }
    return {f"x-fal-webhook-{name}": value for name, value in headers.items()}


def published(*keys: Any) -> Any:
    return json.loads(json.dumps(KeySet(list(keys)).as_dict(private=False)))


def test_a_webhook_of_fal_is_accepted_by_any_key_of_its_set() -> None:
    jwks = published(OTHER, ECKey.generate_key("P-256"), KEY)
    keys = fal_keys(jwks)
    assert len(keys) == 2
    check_fal(of_fal(), BODY, keys, NOW)
    check_fal(of_fal(at=NOW - LATE + timedelta(seconds=1)), BODY, keys, NOW)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(of_fal(), BODY + b" ", id="another body"),
        pytest.param(of_fal(OTHER), BODY, id="another key"),
        pytest.param(of_fal(at=NOW - LATE), BODY, id="old"),
        pytest.param(of_fal(at=NOW + LATE), BODY, id="of the future"),
        pytest.param({**of_fal(), "x-fal-webhook-user-id": "user-2"}, BODY, id="another user"),
        pytest.param({**of_fal(), "x-fal-webhook-signature": "zz"}, BODY, id="no hexadecimal"),
        pytest.param({**of_fal(), "x-fal-webhook-signature": "ab"}, BODY, id="short"),
        pytest.param({**of_fal(), "x-fal-webhook-signature": "ä"}, BODY, id="no ASCII"),
        pytest.param({**of_fal(), "x-fal-webhook-timestamp": "-1"}, BODY, id="no time"),
        pytest.param({}, BODY, id="no headers"),
    ],
)
def test_a_webhook_that_is_not_of_fal_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(CallbackRefused):
        check_fal(headers, body, fal_keys(published(KEY)), NOW)


@pytest.mark.parametrize(
    "jwks",
    [
        None,
        {},
        {"keys": 7},
        {"keys": [None, {"kty": "OKP", "crv": "Ed25519", "x": "short"}]},
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "ä"}]},
    ],
)
def test_a_key_set_without_keys_accepts_nothing(jwks: Any) -> None:
    assert fal_keys(jwks) == []
    with pytest.raises(CallbackRefused):
        check_fal(of_fal(), BODY, [], NOW)
