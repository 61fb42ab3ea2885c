"""Makes and parses ids. They are UUIDv7: later ids sort later, so indexes stay dense."""

import uuid

from uuid_utils.compat import uuid7

from shared.rpc import errors


def new_id() -> uuid.UUID:
    return uuid7()


def parse_id(text: str, field: str) -> uuid.UUID:
    """Parses an id from a request. Raises INVALID_ARGUMENT on `field` if it is not a UUID."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.invalid(
            field, f"{text[:64]!r} is not an id: expected a UUID as an earlier answer gave it"
        ) from None
