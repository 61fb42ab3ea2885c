"""Domain errors and the one table that turns them into gRPC answers.

Code raises a `DomainError` made by one of the functions below; `answer()` turns it into a
`google.rpc.Status` with `ErrorInfo` and the detail that fits the reason. `from_exception` converts
all other exceptions: a driver's text never reaches a caller.
"""

import errno
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import psycopg
import psycopg_pool
import structlog
from atelier.common.v1 import errors_pb2
from google.protobuf import message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from shared.rpc.origin import Context
from shared.storage import StorageFull, StorageUnavailable

DOMAIN = "atelier"
_DATABASE = "database"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
# Clients accept 8 KiB of trailers; a larger refusal reaches them as a broken stream. The trailers
# hold the text twice, once with up to three characters per byte.
_MOST_TEXT_BYTES = 1000
_MOST_DETAIL_BYTES = 3000
_MOST_STATUS_BYTES = 4500
Reason = errors_pb2.ErrorReason
_log = structlog.get_logger("errors")

_CODES: Mapping[int, int] = {
    Reason.ERROR_REASON_INVALID_FIELD: code_pb2.INVALID_ARGUMENT,
    Reason.ERROR_REASON_TOKEN_INVALID: code_pb2.UNAUTHENTICATED,
    Reason.ERROR_REASON_ROLE_NOT_ALLOWED: code_pb2.PERMISSION_DENIED,
    Reason.ERROR_REASON_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.ERROR_REASON_ALREADY_EXISTS: code_pb2.ALREADY_EXISTS,
    Reason.ERROR_REASON_WRONG_STATE: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_ETAG_MISMATCH: code_pb2.ABORTED,
    Reason.ERROR_REASON_REQUEST_ID_REUSED: code_pb2.INVALID_ARGUMENT,
    Reason.ERROR_REASON_REQUEST_IN_PROGRESS: code_pb2.ABORTED,
    Reason.ERROR_REASON_PAGE_TOKEN_INVALID: code_pb2.INVALID_ARGUMENT,
    Reason.ERROR_REASON_CURSOR_TOO_OLD: code_pb2.OUT_OF_RANGE,
    Reason.ERROR_REASON_OVERLOADED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE: code_pb2.UNAVAILABLE,
    Reason.ERROR_REASON_SHUTTING_DOWN: code_pb2.UNAVAILABLE,
    Reason.ERROR_REASON_UPLOAD_REJECTED: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_NOTHING_UPLOADED: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_IN_USE: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_QUOTA_EXCEEDED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_STORAGE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_DEADLINE: code_pb2.DEADLINE_EXCEEDED,
    Reason.ERROR_REASON_INTERNAL: code_pb2.INTERNAL,
    Reason.ERROR_REASON_ATTEMPT_SUPERSEDED: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_SLOW_READER: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_PARTS_MISSING: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_OWNER_ERASED: code_pb2.FAILED_PRECONDITION,
    Reason.ERROR_REASON_TOO_MANY_CALLS: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_CREDITS_EXHAUSTED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_BUDGET_EXCEEDED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.ERROR_REASON_CONSENT_REQUIRED: code_pb2.FAILED_PRECONDITION,
}

# Reasons that may not occur again when the same work is repeated: they don't depend on the work.
_PASSING = frozenset(
    {
        Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        Reason.ERROR_REASON_SHUTTING_DOWN,
        Reason.ERROR_REASON_OVERLOADED,
        Reason.ERROR_REASON_TOO_MANY_CALLS,
        Reason.ERROR_REASON_SLOW_READER,
        Reason.ERROR_REASON_REQUEST_IN_PROGRESS,
        Reason.ERROR_REASON_STORAGE_FULL,
        Reason.ERROR_REASON_DEADLINE,
    }
)


@dataclass
class DomainError(Exception):
    """The error that a caller gets. `metadata` goes into ErrorInfo, `details` are further
    google.rpc messages, `trailers` are sent as trailing metadata (a watch's cursor). `source` isn't
    sent: it names the part of the suite that refused, such as "assets", "database" or "storage",
    for a job that waits for it."""

    reason: int
    text: str
    metadata: dict[str, str] = field(default_factory=dict)
    details: Sequence[message.Message] = ()
    trailers: Sequence[tuple[str, str]] = ()
    source: str = ""

    def __str__(self) -> str:
        return self.text


UNSTORABLE = "a value can't be stored: text may not contain NUL, and numbers must be in range"


def invalid(
    field_path: str, text: str, reason: int = Reason.ERROR_REASON_INVALID_FIELD
) -> DomainError:
    """INVALID_ARGUMENT: a field breaks a rule. `reason` may be any other one that maps to
    INVALID_ARGUMENT."""
    return invalid_fields([(field_path, text)], reason)


def invalid_fields(
    violations: Sequence[tuple[str, str]],
    reason: int = Reason.ERROR_REASON_INVALID_FIELD,
) -> DomainError:
    """INVALID_ARGUMENT for several violations (field path, what is wrong)."""
    named = [
        error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
        for name, text in violations
    ]
    summary = "; ".join(f"{name}: {text}" if name else text for name, text in violations[:5])
    return DomainError(
        reason, summary, details=[error_details_pb2.BadRequest(field_violations=named)]
    )


def not_found(kind: str, name: object) -> DomainError:
    """NOT_FOUND: the thing doesn't exist or is another owner's; the caller can't tell which."""
    text = (
        f"there is no {kind} {str(name)[:200]!r} that you may see; check the id, and the owner in"
        " your token"
    )
    resource = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=str(name)[:200])
    return DomainError(Reason.ERROR_REASON_NOT_FOUND, text, details=[resource])


def already_exists(kind: str, name: str, text: str) -> DomainError:
    resource = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name[:200])
    return DomainError(Reason.ERROR_REASON_ALREADY_EXISTS, text, details=[resource])


def precondition(
    text: str,
    *,
    subject: str,
    reason: int = Reason.ERROR_REASON_WRONG_STATE,
    metadata: Mapping[str, str] | None = None,
    retry_seconds: float | None = None,
) -> DomainError:
    """FAILED_PRECONDITION: the state of `subject` forbids the call. `text` names the state and what
    would help.

    `retry_seconds` adds RetryInfo, for a state that is about to change by itself.
    """
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=Reason.Name(reason).removeprefix("ERROR_REASON_"), subject=subject, description=text
    )
    failure = error_details_pb2.PreconditionFailure(violations=[violation])
    details: list[message.Message] = [failure]
    if retry_seconds is not None:
        details.append(_retry_info(retry_seconds))
    return DomainError(reason, text, dict(metadata or {}), details=details)


def exhausted(reason: int, text: str, *, subject: str, metadata: Mapping[str, str]) -> DomainError:
    """RESOURCE_EXHAUSTED: what `subject` may use doesn't suffice. `text` says what would help."""
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=text)
    failure = error_details_pb2.QuotaFailure(violations=[violation])
    return DomainError(reason, text, dict(metadata), details=[failure])


def retry_later(reason: int, text: str, seconds: float, source: str = "") -> DomainError:
    """A refusal with RetryInfo: the same call may succeed later."""
    return DomainError(reason, text, details=[_retry_info(seconds)], source=source)


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(int(seconds * 1000))
    return info


def unavailable(what: str, source: str) -> DomainError:
    text = (
        f"{what} can't be reached right now; repeat the call, with the same request_id if it"
        " changes something"
    )
    return retry_later(Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, text, 1, source)


def check_etag(etag: str, version: int, kind: str, name: object) -> None:
    """Raises ETAG_MISMATCH if a request's etag is not that of the locked row's version. A request
    without one changes whatever is there."""
    if etag and etag != str(version):
        text = (
            f"the {kind} {name} was changed since you read that etag; read it again and repeat with"
            " the new etag"
        )
        raise DomainError(Reason.ERROR_REASON_ETAG_MISMATCH, text)


def owner_erased() -> DomainError:
    text = "this owner was erased and nothing new is kept for it; use another owner"
    return DomainError(Reason.ERROR_REASON_OWNER_ERASED, text)


def is_owner_erased(error: BaseException) -> bool:
    """Returns whether the schema refused a row because its owner was erased."""
    known = _known(error)
    return known is not None and known.reason == Reason.ERROR_REASON_OWNER_ERASED


def from_exception(error: BaseException) -> DomainError:
    """Converts any exception to a DomainError. An unknown one becomes INTERNAL and is logged with
    an id that the caller gets."""
    known = _known(error)
    if known is not None:
        return known
    reference = secrets.token_hex(6)
    _log.error("internal error", reference=reference, exc_info=error)
    return DomainError(
        Reason.ERROR_REASON_INTERNAL,
        f"a fault of the server, logged as {reference}; tell the operator that id",
    )


def passing(error: BaseException) -> DomainError | None:
    """Returns the error as a DomainError if it is temporary, with the `source` to wait for; None
    for any other error."""
    known = _known(error)
    return known if known is not None and known.reason in _PASSING else None


def _known(error: BaseException) -> DomainError | None:
    match error:
        case DomainError():
            return error
        case TimeoutError():
            return DomainError(
                Reason.ERROR_REASON_DEADLINE, "the deadline passed; unacknowledged work was undone"
            )
        case StorageFull():
            text = "the storage is full; nothing was kept, tell the operator"
            return DomainError(Reason.ERROR_REASON_STORAGE_FULL, text, source="storage")
        case StorageUnavailable():
            return unavailable("the object store", "storage")
        case grpc.aio.AioRpcError() if error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNKNOWN,
        ):
            return unavailable("a service that this call needs", "a service")
        case psycopg.Error() | psycopg_pool.TooManyRequests():
            return _of_database(error)
        case OSError() if error.errno in _NO_ROOM:
            text = (
                f"this machine has no room for it ({error.strerror}); nothing was kept, tell the"
                " operator"
            )
            return DomainError(Reason.ERROR_REASON_STORAGE_FULL, text, source="this machine")
    return None


def _of_database(error: psycopg.Error) -> DomainError | None:
    match error:
        case psycopg.errors.QueryCanceled():
            text = "the deadline passed; unacknowledged work was undone"
            return DomainError(Reason.ERROR_REASON_DEADLINE, text, source=_DATABASE)
        case psycopg_pool.PoolTimeout() | psycopg_pool.TooManyRequests():
            text = "too many calls wait for the database; nothing was changed, try again"
            return retry_later(Reason.ERROR_REASON_OVERLOADED, text, 1, _DATABASE)
        case psycopg.errors.LockNotAvailable():
            text = "another call holds what this one needs; nothing was changed, try again"
            return retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 1, _DATABASE)
        case psycopg.errors.SerializationFailure() | psycopg.errors.DeadlockDetected():
            text = (
                "another call changed the same thing at the same time; nothing was changed, try"
                " again"
            )
            return retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2, _DATABASE)
        case psycopg.errors.CheckViolation() if error.diag.constraint_name == "owner_not_erased":
            return owner_erased()
        case psycopg.errors.ProgramLimitExceeded():
            return invalid("", "a value is too long to be stored and found again; shorten it")
        case psycopg.errors.DiskFull():
            text = "the database's disk is full; nothing was changed"
            return DomainError(Reason.ERROR_REASON_STORAGE_FULL, text, source=_DATABASE)
        case psycopg.OperationalError():
            return unavailable("the database", _DATABASE)
        case psycopg.DataError():
            return invalid("", UNSTORABLE)
    return None


def answer(error: DomainError) -> status_pb2.Status:
    """Returns the `google.rpc.Status` that a caller gets, within the limits on trailers."""
    info = error_details_pb2.ErrorInfo(
        reason=Reason.Name(error.reason).removeprefix("ERROR_REASON_"),
        domain=DOMAIN,
        metadata=error.metadata,
    )
    status = status_pb2.Status(code=_CODES[error.reason], message=_cut(error.text))
    for detail in (info, *map(_shortened, error.details)):
        status.details.add().Pack(detail)
        if status.ByteSize() > _MOST_STATUS_BYTES:
            del status.details[-1]
    return status


def _cut(text: str) -> str:
    whole = text.encode()
    return (
        text
        if len(whole) <= _MOST_TEXT_BYTES
        else whole[: _MOST_TEXT_BYTES - 4].decode(errors="ignore") + " ..."
    )


def _shortened(detail: message.Message) -> message.Message:
    """Drops violations from the end until the detail fits; keeps at least one."""
    for name in ("field_violations", "violations"):
        listed: Any = getattr(detail, name, ())
        while len(listed) > 1 and detail.ByteSize() > _MOST_DETAIL_BYTES:
            del listed[-1]
    return detail


def code_name(error: DomainError) -> str:
    """Returns the gRPC code's name, such as 'NOT_FOUND', for logs and metrics."""
    return code_pb2.Code.Name(_CODES[error.reason])


async def send(context: Context, error: DomainError) -> NoReturn:
    """Ends the call with the status for `error`."""
    status = answer(error)
    details = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(_STATUS_CODES[status.code], status.message, (details, *error.trailers))


_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
