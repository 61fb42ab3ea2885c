"""Checks callbacks with what their providers publish: fal its keys, Replicate the secret of the
account. Both are fetched when they are first needed, and again once they are old or don't fit."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.conversions import rules
from services.conversions.providers import fal, fashn, replicate
from services.conversions.providers.api import Api, Json, item
from services.conversions.providers.callbacks import (
    CallbackRefused,
    check_fal,
    check_replicate,
    check_sent,
    fal_keys,
)
from services.conversions.providers.contract import ProviderFailed
from shared.settings import Settings

# Where each provider's callback has the id of the call.
_ID: Mapping[str, str] = {fal.NAME: "request_id", replicate.NAME: "id", fashn.NAME: "id"}
_DELIVERY: Mapping[str, str] = {
    fal.NAME: "x-fal-webhook-request-id",
    replicate.NAME: "webhook-id",
}
_PREFIX: Mapping[str, str] = {fal.NAME: "x-fal-webhook-", replicate.NAME: "webhook-"}
_FETCH_SECONDS = 10.0
_OLD_SECONDS = 24 * 3600.0  # fal's documentation asks for no more
_SOONEST_SECONDS = 60.0  # anybody may send what doesn't fit


@dataclass
class _Published:
    """What a provider publishes, and when it was fetched."""

    value: Any  # keys of fal, or the secret of Replicate
    at: float


def has_callbacks(provider: str) -> bool:
    return provider in _ID


def call_of(provider: str, body: Json) -> str:
    """Returns what the provider calls the call that its callback is about; "" if it doesn't say."""
    found = item(body, _ID[provider])
    return found if isinstance(found, str) else ""


class Verifier:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._apis: dict[str, Api] = {}
        self._published: dict[str, _Published] = {}

    async def close(self) -> None:
        for api in self._apis.values():
            await api.close()

    async def check(self, provider: str, headers: Mapping[str, str], body: bytes) -> str:
        """Returns the id of the delivery, "" for a provider that doesn't sign: what that sends is a
        hint. Raises CallbackRefused, and ProviderFailed if the provider's keys can't be had.
        `headers`: with names in lower case."""
        if provider not in _DELIVERY:
            return ""
        prefix = _PREFIX[provider]
        others = (_DELIVERY[provider], f"{prefix}signature")
        check_sent(headers, f"{prefix}timestamp", others, datetime.now(UTC))
        known = self._published.get(provider)
        if known is None or time.monotonic() - known.at > _OLD_SECONDS:
            known = await self._fetch(provider)
        try:
            _check(provider, headers, body, known.value)
        except CallbackRefused:
            if time.monotonic() - known.at < _SOONEST_SECONDS:
                raise
            known = await self._fetch(provider)  # the provider may have changed them
            _check(provider, headers, body, known.value)
        return headers[_DELIVERY[provider]]

    async def _fetch(self, provider: str) -> _Published:
        api = self._api(provider)
        path = "" if provider == fal.NAME else "/v1/webhooks/default/secret"
        reply = await api.send("GET", path, seconds=_FETCH_SECONDS)
        if reply.status != 200:
            raise api.failed(reply, "")
        answer = api.json(reply)
        value = fal_keys(answer) if provider == fal.NAME else item(answer, "key")
        if not value:
            raise ProviderFailed(rules.BAD_ANSWER, f"{provider} publishes nothing to check with")
        found = self._published[provider] = _Published(value, time.monotonic())
        return found

    def _api(self, provider: str) -> Api:
        if provider not in self._apis:
            settings = self._settings
            if provider == fal.NAME:
                api = Api(settings, provider, settings.fal_jwks_url, {}, "")
            else:
                token = settings.replicate_api_token.get_secret_value()
                headers = {"Authorization": f"Bearer {token}"}
                api = Api(settings, provider, settings.replicate_url, headers, token)
            self._apis[provider] = api
        return self._apis[provider]


def _check(provider: str, headers: Mapping[str, str], body: bytes, published: Any) -> None:
    now = datetime.now(UTC)
    if provider == fal.NAME:
        check_fal(headers, body, published, now)
    else:
        check_replicate(headers, body, published, now)
