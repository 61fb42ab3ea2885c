"""Translates the S3 driver's errors into this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .base import (
    InvalidKey,
    MultipartEnded,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

MISSING: Final = frozenset({"NoSuchKey", "NotFound", "404"})
_TAKEN: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_FULL: Final = frozenset(
    {"QuotaExceeded", "NoSpaceLeftOnDevice", "InsufficientStorage", "XMinioStorageFull"}
)
_MISPLACED: Final = frozenset(
    {"ObjectParentIsFile", "ExistingObjectIsDirectory", "ExistingObjectIsFile", "KeyTooLongError"}
)
_PATIENCE: Final = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ServiceUnavailable", "OperationAborted"}
)


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Raises this package's errors for the driver's; any other error is a bug of ours and passes
    unchanged."""
    try:
        yield
    except Exception as error:
        known = _meaning(error, subject)
        if known is None:
            raise
        raise known from None


def _meaning(error: Exception, subject: str) -> StorageError | None:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
    from botocore.exceptions import ConnectionError as NoConnection

    if isinstance(error, ClientError):
        return _answered(error, subject)
    if isinstance(error, (HTTPClientError, NoConnection, IncompleteReadError)):
        return StorageUnavailable(f"{subject}: the store can't be reached ({type(error).__name__})")
    if isinstance(error, BotoCoreError):
        return StorageError(f"{subject}: the request could not be made ({type(error).__name__})")
    return None


def _answered(error: ClientError, subject: str) -> StorageError:
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in MISSING:
        return ObjectNotFound(f"there is no object {subject}")
    if code in _TAKEN:
        return ObjectExists(f"{subject} exists already")
    if code in ("InvalidPart", "InvalidPartOrder"):
        return StorageUnavailable(f"{subject}: a part was sent anew; list the parts again")
    if code == "NoSuchUpload":
        return MultipartEnded(f"{subject}: its upload in parts has ended")
    if code in _MISPLACED:
        return InvalidKey(f"{subject}: a key can't be another key's folder, or it is too long")
    if code in _FULL or status == 507:
        return StorageFull(f"{subject}: no space left")
    text = f"{subject}: the store answered {code} to {error.operation_name}"
    return (
        StorageUnavailable(text)
        if code in _PATIENCE or status >= 500 or status == 429
        else StorageError(text)
    )


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
