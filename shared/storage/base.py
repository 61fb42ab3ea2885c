"""The interface of object storage: the contract of every backend, its values and its errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import quote

from shared.formats import names

CHUNK: Final = 256 * 1024
"""Bytes per piece of a streamed read or write."""

RASTER_TYPES: Final = frozenset(
    {"image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/tiff"},
)
"""The only content types that a browser may show in place; all others are downloads."""

PUBLIC_PREFIX: Final = "public/"
FOREVER: Final = "max-age=31536000, immutable"
MAX_KEY_BYTES: Final = 900
MAX_SEGMENT_BYTES: Final = 240
MAX_LINK_AGE: Final = timedelta(days=7)

Source = bytes | Path | AsyncIterator[bytes]
Check = Callable[[Path, str], Awaitable[None]]
"""Checks a local file with exactly the object's bytes, given with their SHA-256; raises if they
must not be stored."""


class StorageError(Exception):
    """Base of all errors of this package about objects; the text is safe to log and to show."""


class InvalidKey(StorageError):
    """The key can't name an object. It is the caller's mistake; a retry never helps."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class ObjectExists(StorageError):
    """The key is taken and `if_absent` was set; the existing object is unchanged."""


class ChecksumMismatch(StorageError):
    """The bytes don't match the declared or recorded digest; nothing was left behind."""


class MultipartEnded(StorageError):
    """The multipart upload is completed or aborted, or never existed."""


class StorageFull(StorageError):
    """No space is left or a quota is exceeded; nothing was left behind. Retry only after space was
    freed."""


class StorageUnavailable(StorageError):
    """The store can't be reached or asks to slow down. Retry with backoff."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The facts about one object.

    size: bytes. etag: opaque, no quotes, different whenever the bytes differ. sha256: lower-case
    hex; None if the store doesn't know it (browser uploads to S3, listings of S3, S3 streams over
    8 MiB put without a declared digest). content_type: MIME type, '' if a listing lacks it.
    modified: UTC.
    """

    key: str
    size: int
    etag: str
    sha256: str | None
    content_type: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class SignedPost:
    """A browser form: POST `fields` as multipart/form-data to `url`, in any order, with the part
    named `file` last."""

    url: str
    fields: dict[str, str] = field(repr=False)
    expires_at: datetime
    method: Literal["POST"] = "POST"


@dataclass(frozen=True, slots=True)
class SignedPut:
    """A signed PUT: send the body to `url` with exactly these headers."""

    url: str = field(repr=False)
    headers: dict[str, str]
    expires_at: datetime
    method: Literal["PUT"] = "PUT"


@dataclass(frozen=True, slots=True)
class Part:
    """A part that has arrived. number: from 1. size: bytes. etag: opaque, different when the part
    is sent again."""

    number: int
    size: int
    etag: str


class Storage(Protocol):
    """Objects by key. A reader sees one version of an object; an object is replaced whole or not at
    all.

    Keys are `/`-separated segments, for example `assets/user%3Aada/photos/<id>/<uuid>`: at most 900
    bytes of UTF-8 (240 per segment), no empty, `.` or `..` segment, no backslash or control
    character; else InvalidKey. A key must not be another key's folder (`a/b` beside `a/b/c`):
    stores on a file system refuse the second with InvalidKey.

    Keys that begin with `public/` are readable by anyone at `public_url` and cached for a year, so
    objects there must never change; all others need a signature. Every method may raise
    StorageUnavailable; no driver exception passes. Safe for concurrent tasks; the event loop never
    blocks on input or output.
    """

    @property
    def supports_post(self) -> bool:
        """True if `sign_post` works with this store; otherwise use `sign_put`."""

    async def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str,
        if_absent: bool = False,
        sha256: str | None = None,
        cache_forever: bool = False,
        check: Check | None = None,
    ) -> Stat:
        """Stores the bytes of `source` durably and atomically, in constant memory; returns a Stat
        with their digest.

        A reader sees the old object or the new one, never a part. If `source` or this call fails or
        is cancelled, the old object stays and nothing else is left; an error of `source` passes
        unchanged. `sha256` (hex) is compared with the digest of the bytes. `check` sees all bytes
        before anybody else can; its errors pass unchanged. `cache_forever` lets clients that may
        read the object cache it for a year (implied by `public/`).

        Raises ObjectExists (with `if_absent`: one of several concurrent callers wins, as far as the
        store's conditional write is atomic, see `open_s3`), ChecksumMismatch, StorageFull,
        InvalidKey.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yields bytes `start` to `end` (exclusive; None: to the end) in chunks of 256 KiB, all of
        one version of the object.

        Positions past the end are clipped, as in a slice. Raises ObjectNotFound before the first
        chunk.
        """

    async def fetch(self, key: str, path: Path) -> Stat:
        """Writes the object to the local file `path` (mode 0600); computes `Stat.sha256` from the
        written bytes.

        Raises ObjectNotFound; ChecksumMismatch if the store recorded another digest (damage);
        StorageFull. Leaves no file when it raises.
        """

    async def stat(self, key: str) -> Stat:
        """Returns the facts about the object. Raises ObjectNotFound."""

    async def copy(
        self,
        source: str,
        target: str,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        check: Check | None = None,
    ) -> Stat:
        """Copies within the store, with the digest and, unless given, the content type. `target`
        gets its own `modified`.

        `check` sees the bytes of the copy, even if the source changes meanwhile. If it raises, the
        error passes unchanged and no copy is left; a store that copies by itself may show `target`
        until then.

        Raises ObjectNotFound (source), ObjectExists, ChecksumMismatch (the source is damaged),
        StorageFull.
        """

    async def delete(self, keys: Iterable[str]) -> None:
        """Deletes all of `keys`; ignores missing ones. Doesn't flush: after a power failure an
        object may be back."""

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Stat]:
        """Yields objects whose key begins with `prefix` ('' for all) and sorts after `after`, in
        the byte order of their keys; reads a page at a time.

        Not a snapshot: objects written or deleted meanwhile may or may not appear; all others
        appear once.
        """

    async def sweep(self, older_than: timedelta) -> int:
        """Removes the remains of unfinished writes and multipart uploads that began longer ago than
        `older_than`; returns how many.

        `older_than` must be longer than any multipart upload may take.
        """

    async def start_multipart(self, key: str, *, content_type: str) -> str:
        """Begins a multipart upload; returns its name. The object appears under `key` only when
        complete.

        The rules of S3 apply: every part but the last has at least 5 MiB, none more than 5 GiB, and
        there are at most 10,000.
        """

    def sign_part(
        self, key: str, upload: str, number: int, *, length: int, expires_in: timedelta
    ) -> SignedPut:
        """Signs a PUT of exactly `length` bytes as part `number`, from 1. Sending a part again
        replaces it."""

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        """Returns the parts that have arrived, by number. Raises MultipartEnded."""

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> Stat:
        """Joins `parts` in this order into the object; drops parts that aren't named.

        Raises MultipartEnded, also if another call completes the upload first (a store that
        remembers its last uploads may return the object instead); StorageUnavailable if a part was
        sent again since it was listed: list again.
        """

    async def abort_multipart(self, key: str, upload: str) -> None:
        """Removes the parts that have arrived and ends the URLs of parts. Ignores an upload that
        has ended; the object of a completed one stays."""

    def sign_post(
        self, key: str, *, max_bytes: int, content_type: str, expires_in: timedelta
    ) -> SignedPost:
        """Returns a form with which a browser may store 1 to `max_bytes` bytes of this content type
        under this key.

        The form works repeatedly until it expires: the last complete upload wins. The caller must
        still check the bytes that arrive.
        """

    def sign_put(
        self, key: str, *, length: int, content_type: str, expires_in: timedelta
    ) -> SignedPut:
        """Signs a PUT of exactly `length` bytes of this content type, for stores without POST; both
        are signed."""

    def sign_get(
        self,
        key: str,
        *,
        expires_in: timedelta,
        file_name: str | None = None,
        content_type: str | None = None,
        inline: bool = False,
    ) -> str:
        """Returns a URL that reads this one object until it expires, after at most 7 days.

        The browser saves it as `names.of_file(file_name)`. `content_type` replaces the stored one.
        `inline` shows it in place, but only together with a raster `content_type`: other types
        could run code in the page's origin.
        """

    def public_url(self, key: str) -> str:
        """Returns the stable URL of a key under `public/`. Raises InvalidKey for any other."""

    async def close(self) -> None:
        """Ends threads and connections after calls in flight have finished."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029]")
_CONTENT_TYPE = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:;[\x20-\x7e]*)?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_key(key: str) -> str:
    """Returns the key. Raises InvalidKey with the rule that it breaks."""
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode") from None
    if not encoded or len(encoded) > MAX_KEY_BYTES:
        raise InvalidKey(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one has {len(encoded)}")
    if _CONTROL.search(key):
        raise InvalidKey("a key has no control characters and no backslash")
    for segment in encoded.split(b"/"):
        if segment in (b"", b".", b".."):
            raise InvalidKey("a key has no empty, '.' or '..' segment")
        if len(segment) > MAX_SEGMENT_BYTES:
            raise InvalidKey(f"a segment of a key has at most {MAX_SEGMENT_BYTES} bytes")
    return key


def check_prefix(prefix: str) -> str:
    """Returns the prefix. Raises InvalidKey if no key could begin with it."""
    if prefix:
        check_key(prefix + "x" if prefix.endswith(("/", ".")) else prefix)
    return prefix


def check_public(key: str) -> str:
    """Returns the key. Raises InvalidKey if it may not have a public URL."""
    if not check_key(key).startswith(PUBLIC_PREFIX):
        raise InvalidKey(f"only keys under {PUBLIC_PREFIX} have a public URL")
    return key


def check_content_type(content_type: str) -> str:
    """Returns the type. Raises ValueError if it doesn't fit a header's grammar, since it becomes a
    response header."""
    if len(content_type) > 255 or not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(
            "a content type looks like image/jpeg and has at most 255 ASCII characters"
        )
    return content_type


def check_digest(sha256: str | None) -> str | None:
    """Returns the digest in lower case. Raises ValueError if it is none."""
    if sha256 is not None and not _SHA256.fullmatch(sha256 := sha256.lower()):
        raise ValueError("a SHA-256 digest has 64 hexadecimal digits")
    return sha256


def check_range(start: int, end: int | None) -> None:
    """Raises ValueError unless 0 <= start <= end."""
    if start < 0 or (end is not None and end < start):
        raise ValueError("a range needs 0 <= start <= end")


def check_lifetime(expires_in: timedelta) -> int:
    """Returns whole seconds. Raises ValueError outside 1 second to 7 days (S3 refuses more)."""
    seconds = int(expires_in.total_seconds())
    if not 1 <= seconds <= MAX_LINK_AGE.total_seconds():
        raise ValueError("a signed URL lives from 1 second to 7 days")
    return seconds


def is_raster(content_type: str) -> bool:
    """Returns whether a browser may show the type in place."""
    return content_type.partition(";")[0].strip().lower() in RASTER_TYPES


def content_disposition(file_name: str | None, *, inline: bool) -> str:
    """Returns the header of RFC 6266 with the name from `names.of_file`, in ASCII for old clients
    and in UTF-8."""
    kind = "inline" if inline else "attachment"
    if not file_name:
        return kind
    clean = names.of_file(file_name)
    # Some browsers decode percent signs in the plain form, and some parsers end it at a semicolon.
    plain = re.sub(r"[^\x20-\x7e]|[%;]", "_", clean)
    header = f'{kind}; filename="{plain}"'
    return header if plain == clean else f"{header}; filename*=UTF-8''{quote(clean, safe='')}"


def cache_control(key: str, cache_forever: bool) -> str:
    """Returns an object's Cache-Control header: who may cache it, and for how long."""
    if key.startswith(PUBLIC_PREFIX):
        return f"public, {FOREVER}"
    return f"private, {FOREVER}" if cache_forever else "private, no-cache"
