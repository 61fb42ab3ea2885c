"""The interface of object storage: what every backend promises, its values and its errors."""

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
"""Bytes in one piece of a streamed read or write."""

RASTER_TYPES: Final = frozenset(
    {"image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/tiff"},
)
"""The only content types a browser is ever asked to show in place; everything else is a
download."""

PUBLIC_PREFIX: Final = "public/"
FOREVER: Final = "max-age=31536000, immutable"
MAX_KEY_BYTES: Final = 900
MAX_SEGMENT_BYTES: Final = 240
MAX_LINK_AGE: Final = timedelta(days=7)

Source = bytes | Path | AsyncIterator[bytes]
Check = Callable[[Path, str], Awaitable[None]]
"""Looks at a local file with exactly the bytes, and at their SHA-256; raises if they are not to be
stored."""


class StorageError(Exception):
    """Base of everything this package raises about objects; the text is safe to log and to show."""


class InvalidKey(StorageError):
    """The key can't name an object: the caller's mistake, never worth a retry."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class ObjectExists(StorageError):
    """`if_absent` was asked for and the key is taken; what is there was not touched."""


class ChecksumMismatch(StorageError):
    """The bytes aren't the declared ones; nothing was left behind."""


class MultipartEnded(StorageError):
    """The upload in parts is completed or aborted, or never was."""


class StorageFull(StorageError):
    """No space, or over a quota; nothing was left behind. Retry only after space was made."""


class StorageUnavailable(StorageError):
    """The store can't be reached or asks for patience. Worth a retry with backoff."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of one object.

    size: bytes. etag: opaque, no quotes, another one whenever the bytes are others. sha256:
    lower-case hex; None where the store was never told (browser uploads to S3, listings of S3, S3
    streams over 8 MiB put without a declared digest). content_type: MIME type, '' where a listing
    doesn't carry it. modified: UTC.
    """

    key: str
    size: int
    etag: str
    sha256: str | None
    content_type: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class SignedPost:
    """A browser form: POST `fields` as multipart/form-data to `url`, in any order, the part named
    `file` last."""

    url: str
    fields: dict[str, str] = field(repr=False)
    expires_at: datetime
    method: Literal["POST"] = "POST"


@dataclass(frozen=True, slots=True)
class SignedPut:
    """PUT the body to `url` with exactly these headers."""

    url: str = field(repr=False)
    headers: dict[str, str]
    expires_at: datetime
    method: Literal["PUT"] = "PUT"


@dataclass(frozen=True, slots=True)
class Part:
    """A part that arrived. number: from 1. size: bytes. etag: opaque, another one when the part was
    sent anew."""

    number: int
    size: int
    etag: str


class Storage(Protocol):
    """Objects by key: immutable once read, replaced whole or not at all.

    Keys are `/`-separated segments, for example `assets/user%3Aada/photos/<id>/<uuid>`: at most 900
    bytes of UTF-8 (240 a segment), no empty, `.` or `..` segment, no backslash or control
    character; else InvalidKey. A key must not be another key's folder (`a/b` beside `a/b/c`):
    stores on a file system refuse the second with InvalidKey.

    Keys that begin with `public/` are readable by anyone at `public_url` and cached forever, so
    what is stored there never changes; all others need a signature. Every method may raise
    StorageUnavailable; no driver exception passes. Safe for many tasks at once; the event loop is
    never blocked on input or output.
    """

    @property
    def supports_post(self) -> bool:
        """Whether `sign_post` works here; where it doesn't, use `sign_put`."""

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
        """Store the bytes of `source` durably and atomically, in constant memory; the answer has
        their digest.

        A reader sees the old object or the new one, never a part. If `source` or this call fails or
        is cancelled, nothing is left and what was there stays; an error raised by `source` passes
        unchanged. `sha256` (hex) is compared with the digest of the bytes. `check` sees all of them
        before anybody else can; what it raises passes unchanged. `cache_forever` lets whoever may
        read the object keep it for a year (implied by `public/`).

        Raises ObjectExists (with `if_absent`: of concurrent callers one wins, as far as the store's
        conditional write is atomic, see `open_s3`), ChecksumMismatch, StorageFull, InvalidKey.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive; None: to the end) in chunks of 256 KiB, all of one
        version of the object.

        Positions past the end are cut, as in a slice. Raises ObjectNotFound before the first chunk.
        """

    async def fetch(self, key: str, path: Path) -> Stat:
        """Write the object to the local file `path` (mode 0600); `Stat.sha256` is computed from
        what was written.

        Raises ObjectNotFound; ChecksumMismatch when the store recorded another digest (damage);
        StorageFull. No file is left when it raises.
        """

    async def stat(self, key: str) -> Stat:
        """What is known of the object. Raises ObjectNotFound."""

    async def copy(
        self,
        source: str,
        target: str,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        check: Check | None = None,
    ) -> Stat:
        """Copy within the store; digest and content type (unless given) go along. `target` has its
        own `modified`.

        `check` sees the bytes of the copy, whatever becomes of the source meanwhile. If it raises,
        which passes unchanged, nothing is left; a store that copies by itself may show `target`
        until then.

        Raises ObjectNotFound (source), ObjectExists, ChecksumMismatch (the source is damaged),
        StorageFull.
        """

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete all of `keys`; a missing one is fine. Not flushed: after a power cut an object may
        be back."""

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Stat]:
        """Objects whose key begins with `prefix` ('' for all) and comes after `after`, in the byte
        order of their keys, a page at a time.

        Not a snapshot: an object written or deleted meanwhile may or may not be seen; all others
        are seen once.
        """

    async def sweep(self, older_than: timedelta) -> int:
        """Remove what is left of unfinished writes and uploads in parts, if begun longer ago than
        `older_than`.

        Answers how many. `older_than` must be longer than any upload in parts may take.
        """

    async def start_multipart(self, key: str, *, content_type: str) -> str:
        """Begin to receive an object in parts; answers the name of this upload. `key` shows it only
        when complete.

        The rules of S3: every part but the last has at least 5 MiB, none more than 5 GiB, and there
        are at most 10,000.
        """

    def sign_part(
        self, key: str, upload: str, number: int, *, length: int, expires_in: timedelta
    ) -> SignedPut:
        """A PUT of exactly `length` bytes as part `number`, from 1. Sent again, the part is
        replaced."""

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        """The parts that arrived, by number. Raises MultipartEnded."""

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> Stat:
        """Make the object of `parts`, one after the other; parts that aren't named are dropped.

        Raises MultipartEnded, also when another call completes it first (a store that remembers its
        last uploads may answer with the object instead); StorageUnavailable if a part was sent anew
        since it was listed: list again.
        """

    async def abort_multipart(self, key: str, upload: str) -> None:
        """Remove what arrived; URLs of parts end. One that has ended is fine; a completed one's
        object stays."""

    def sign_post(
        self, key: str, *, max_bytes: int, content_type: str, expires_in: timedelta
    ) -> SignedPost:
        """A form with which a browser may store 1 to `max_bytes` bytes of this content type under
        this key.

        It works until it expires, more than once: the last complete upload wins. What arrived is
        still to be checked.
        """

    def sign_put(
        self, key: str, *, length: int, content_type: str, expires_in: timedelta
    ) -> SignedPut:
        """For stores without POST: a PUT of exactly `length` bytes of this content type, both
        signed."""

    def sign_get(
        self,
        key: str,
        *,
        expires_in: timedelta,
        file_name: str | None = None,
        content_type: str | None = None,
        inline: bool = False,
    ) -> str:
        """A URL that reads this one object until it expires, at most 7 days.

        The browser saves it as `names.of_file(file_name)`. `content_type` replaces the stored one.
        `inline` shows it in place, honoured only together with a raster `content_type`: other types
        could run in the page's origin.
        """

    def public_url(self, key: str) -> str:
        """The stable URL of a key under `public/`; InvalidKey for any other."""

    async def close(self) -> None:
        """End threads and connections; calls in flight finish first."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029]")
_CONTENT_TYPE = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:;[\x20-\x7e]*)?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_key(key: str) -> str:
    """The key itself, or InvalidKey with the rule that it breaks."""
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
    """The prefix itself if some key could begin with it, else InvalidKey."""
    if prefix:
        check_key(prefix + "x" if prefix.endswith(("/", ".")) else prefix)
    return prefix


def check_public(key: str) -> str:
    """The key itself if it may have a public URL, else InvalidKey."""
    if not check_key(key).startswith(PUBLIC_PREFIX):
        raise InvalidKey(f"only keys under {PUBLIC_PREFIX} have a public URL")
    return key


def check_content_type(content_type: str) -> str:
    """The type itself, or ValueError: it becomes a response header, so it is held to the grammar of
    one."""
    if len(content_type) > 255 or not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(
            "a content type looks like image/jpeg and has at most 255 ASCII characters"
        )
    return content_type


def check_digest(sha256: str | None) -> str | None:
    """The digest in lower case, or ValueError."""
    if sha256 is not None and not _SHA256.fullmatch(sha256 := sha256.lower()):
        raise ValueError("a SHA-256 digest has 64 hexadecimal digits")
    return sha256


def check_range(start: int, end: int | None) -> None:
    """ValueError for a range that no slice of bytes has."""
    if start < 0 or (end is not None and end < start):
        raise ValueError("a range needs 0 <= start <= end")


def check_lifetime(expires_in: timedelta) -> int:
    """Whole seconds, 1 to 7 days (more is refused by S3), else ValueError."""
    seconds = int(expires_in.total_seconds())
    if not 1 <= seconds <= MAX_LINK_AGE.total_seconds():
        raise ValueError("a signed URL lives from 1 second to 7 days")
    return seconds


def is_raster(content_type: str) -> bool:
    """Whether a browser may show the type in place."""
    return content_type.partition(";")[0].strip().lower() in RASTER_TYPES


def content_disposition(file_name: str | None, *, inline: bool) -> str:
    """The header of RFC 6266: the name as files are called, in ASCII for old clients, and in
    UTF-8."""
    kind = "inline" if inline else "attachment"
    if not file_name:
        return kind
    clean = names.of_file(file_name)
    # Some browsers decode a percent sign in the plain form, and some readers end it at a semicolon.
    plain = re.sub(r"[^\x20-\x7e]|[%;]", "_", clean)
    header = f'{kind}; filename="{plain}"'
    return header if plain == clean else f"{header}; filename*=UTF-8''{quote(clean, safe='')}"


def cache_control(key: str, cache_forever: bool) -> str:
    """The Cache-Control header of an object: who may keep it, and for how long."""
    if key.startswith(PUBLIC_PREFIX):
        return f"public, {FOREVER}"
    return f"private, {FOREVER}" if cache_forever else "private, no-cache"
