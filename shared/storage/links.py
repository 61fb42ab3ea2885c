"""Signs URLs and upload forms of the disk backend with HMAC-SHA256, and verifies them for this
package's HTTP server."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from shared.formats import names

from .base import (
    SignedPost,
    SignedPut,
    StorageError,
    check_content_type,
    check_key,
    check_lifetime,
    check_public,
    is_raster,
)

OBJECTS_PATH: Final = "/o"
MIN_SECRET_BYTES: Final = 32


class LinkRefused(StorageError):
    """A URL or form was altered, is for something else, or has expired. `next_step` tells the
    reader what to do."""

    def __init__(self, error: str, next_step: str) -> None:
        super().__init__(error)
        self.next_step = next_step


ALTERED: Final = (
    "the signature does not match",
    "use the URL or form exactly as issued, or ask the service for a new one",
)
EXPIRED: Final = ("the link has expired", "ask the service for a new one")


def read_secret(path: Path) -> bytes:
    """Reads the signing secret from a text file, without the line end. Raises OSError; ValueError
    if it is too short."""
    secret = path.read_bytes().strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"{path} needs at least {MIN_SECRET_BYTES} bytes of secret text")
    return secret


@dataclass(frozen=True)
class ReadGrant:
    """The rights of a verified GET URL: the file name, the content type to send ('' for the stored
    one), and whether it is shown in place."""

    file_name: str
    content_type: str
    inline: bool


@dataclass(frozen=True)
class WriteGrant:
    """The rights of a verified upload: this key, this type, `min_bytes` to `max_bytes` bytes.
    `part` is the multipart upload and the part's number; then the upload has the type."""

    key: str
    content_type: str
    min_bytes: int
    max_bytes: int
    part: tuple[str, int] | None = None


class Links:
    """Signs and verifies. `base_url` is the HTTP server as clients reach it; `public_base_url`
    replaces `<base_url>/o` in public URLs."""

    def __init__(self, secret: bytes, base_url: str, public_base_url: str | None) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the signing secret needs at least {MIN_SECRET_BYTES} bytes")
        self._secret = secret
        self._objects = base_url.rstrip("/") + OBJECTS_PATH
        self._public = (public_base_url or self._objects).rstrip("/")

    def public_url(self, key: str) -> str:
        """See Storage.public_url."""
        return f"{self._public}/{quote(check_public(key))}"

    def sign_get(
        self,
        key: str,
        expires_in: timedelta,
        file_name: str | None,
        content_type: str | None,
        inline: bool,
    ) -> str:
        """See Storage.sign_get."""
        query = {"expires": str(_expiry(expires_in))}
        if file_name:
            query["name"] = names.of_file(file_name)
        if content_type:
            query["type"] = check_content_type(content_type)
            if inline and is_raster(content_type):
                query["inline"] = "1"
        return self._url("GET", key, query)

    def sign_put(
        self, key: str, length: int, content_type: str, expires_in: timedelta
    ) -> SignedPut:
        """See Storage.sign_put."""
        expires = _expiry(expires_in)
        query = {
            "expires": str(expires),
            "length": str(length),
            "type": check_content_type(content_type),
        }
        headers = {"Content-Type": content_type, "Content-Length": str(length)}
        return SignedPut(
            self._url("PUT", key, query), headers, datetime.fromtimestamp(expires, UTC)
        )

    def sign_part(
        self, key: str, upload: str, number: int, length: int, expires_in: timedelta
    ) -> SignedPut:
        """See Storage.sign_part."""
        expires = _expiry(expires_in)
        query = {
            "expires": str(expires),
            "length": str(length),
            "upload": upload,
            "part": str(number),
        }
        headers = {"Content-Length": str(length)}
        return SignedPut(
            self._url("PUT", key, query), headers, datetime.fromtimestamp(expires, UTC)
        )

    def sign_post(
        self, key: str, max_bytes: int, content_type: str, expires_in: timedelta
    ) -> SignedPost:
        """See Storage.sign_post."""
        expires = _expiry(expires_in)
        claims = [check_key(key), check_content_type(content_type), max_bytes, expires]
        policy = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        fields = {
            "key": key,
            "Content-Type": content_type,
            "policy": policy,
            "signature": self._mac("POST", policy),
        }
        return SignedPost(self._objects, fields, datetime.fromtimestamp(expires, UTC))

    def verify_get(self, key: str, query: Iterable[tuple[str, str]]) -> ReadGrant:
        """Returns what the query of a GET or HEAD allows for this key. Raises LinkRefused."""
        claims = self._verify("GET", key, query)
        return ReadGrant(claims.get("name", ""), claims.get("type", ""), "inline" in claims)

    def verify_put(self, key: str, query: Iterable[tuple[str, str]]) -> WriteGrant:
        """Returns what the query of a PUT allows for this key. Raises LinkRefused."""
        claims = self._verify("PUT", key, query)
        length = int(claims["length"])
        part = (claims["upload"], int(claims["part"])) if "part" in claims else None
        return WriteGrant(key, claims.get("type", ""), length, length, part)

    def verify_post(self, fields: Mapping[str, str]) -> WriteGrant:
        """Returns what the fields of a form allow. Raises LinkRefused."""
        policy = fields.get("policy", "")
        if not hmac.compare_digest(
            self._mac("POST", policy).encode(), fields.get("signature", "").encode()
        ):
            raise LinkRefused(*ALTERED)
        try:
            key, content_type, max_bytes, expires = json.loads(base64.urlsafe_b64decode(policy))
        except (binascii.Error, ValueError):  # signed by another version of this program
            raise LinkRefused(*ALTERED) from None
        if fields.get("key") != key or fields.get("Content-Type") != content_type:
            raise LinkRefused("the form's key or Content-Type is not the signed one", ALTERED[1])
        if time.time() >= expires:
            raise LinkRefused(*EXPIRED)
        return WriteGrant(key, content_type, 1, max_bytes)

    def _url(self, method: str, key: str, query: dict[str, str]) -> str:
        mac = self._mac(method, check_key(key), *_canonical(query.items()))
        return f"{self._objects}/{quote(key)}?{urlencode({**query, 'signature': mac})}"

    def _verify(self, method: str, key: str, query: Iterable[tuple[str, str]]) -> dict[str, str]:
        pairs = list(query)
        given = [value for name, value in pairs if name == "signature"]
        # The signature covers everything else in the query, so an added or repeated parameter
        # breaks it.
        rest = [pair for pair in pairs if pair[0] != "signature"]
        expected = self._mac(method, key, *_canonical(rest))
        if len(given) != 1 or not hmac.compare_digest(
            expected.encode(), given[0].encode("utf-8", "replace")
        ):
            raise LinkRefused(*ALTERED)
        claims = dict(rest)
        if time.time() >= int(claims["expires"]):
            raise LinkRefused(*EXPIRED)
        return claims

    def _mac(self, *parts: str) -> str:
        # JSON makes the text unambiguous: no two lists of parts have the same text.
        text = json.dumps(parts).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def _canonical(query: Iterable[tuple[str, str]]) -> list[str]:
    return [part for pair in sorted(query) for part in pair]


def _expiry(expires_in: timedelta) -> int:
    return int(time.time()) + check_lifetime(expires_in)
