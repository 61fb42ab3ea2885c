"""Object storage: one interface (`Storage`), two backends (`open_disk`, `open_s3`), signed and
public URLs."""

from .base import (
    Check,
    ChecksumMismatch,
    InvalidKey,
    MultipartEnded,
    ObjectExists,
    ObjectNotFound,
    Part,
    SignedPost,
    SignedPut,
    Source,
    Stat,
    Storage,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from .disk import open_disk
from .links import read_secret
from .s3 import open_s3

__all__ = [
    "Check",
    "ChecksumMismatch",
    "InvalidKey",
    "MultipartEnded",
    "ObjectExists",
    "ObjectNotFound",
    "Part",
    "SignedPost",
    "SignedPut",
    "Source",
    "Stat",
    "Storage",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "open_disk",
    "open_s3",
    "read_secret",
]
