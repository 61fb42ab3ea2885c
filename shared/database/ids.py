"""The one maker of ids: UUIDv7, so that ids made later sort later and indexes stay dense."""

import uuid

from uuid_utils.compat import uuid7

from shared.rpc import errors


def new_id() -> uuid.UUID:
    return uuid7()


def parse_id(text: str, field: str) -> uuid.UUID:
    """An id of ours from a request. A text that can't be one is INVALID_ARGUMENT on `field`."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.invalid(
            field, f"{text[:64]!r} is not an id: expected a UUID as an earlier answer gave it"
        ) from None
