"""Rows of the webhook tables that every service has, and their messages."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from atelier.webhooks.v1 import webhook_pb2 as pb

from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp

ENDPOINT_STATES = EnumNames(pb.EndpointState, "ENDPOINT_STATE_")
DISABLE_REASONS = EnumNames(pb.DisableReason, "DISABLE_REASON_")
DELIVERY_STATES = EnumNames(pb.DeliveryState, "DELIVERY_STATE_")


@dataclass(slots=True)
class Endpoint:
    id: UUID
    owner: str
    created_by: str
    url: str
    description: str
    event_types: list[str]  # empty means all
    state: str
    disable_reason: str
    disabled_at: datetime | None
    failing_since: datetime | None
    last_error_class: str
    replay_from: int | None
    replay_to: int | None
    version: int
    created_at: datetime
    updated_at: datetime
    paused_until: datetime | None


class LockedEndpoint(Endpoint):
    """An endpoint that the transaction locks until it ends."""

    __slots__ = ()


@dataclass(slots=True)
class Delivery:
    id: UUID
    owner: str
    endpoint_id: UUID
    position: int | None  # the event's position; None for a test event
    event_type: str
    body: str
    state: str
    attempts: int
    attempts_in_turn: int
    turn_began_at: datetime
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    status_code: int
    error_class: str
    error_message: str
    response_excerpt: str
    created_at: datetime
    ended_at: datetime | None


@dataclass(slots=True)
class Secret:
    owner: str
    endpoint_id: UUID
    version: int  # the version of the endpoint that the secret came with
    secret: str
    created_at: datetime
    expires_at: datetime | None


ENDPOINTS = Table("webhook_endpoints", LockedEndpoint)
DELIVERIES = Table("webhook_deliveries", Delivery)
SECRETS = Table("webhook_secrets", Secret)


def endpoint_to_proto(row: Endpoint) -> pb.Endpoint:
    paused = row.paused_until is not None and row.paused_until > datetime.now(UTC)
    return pb.Endpoint(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        url=row.url,
        description=row.description,
        event_types=row.event_types,
        state=ENDPOINT_STATES.number[row.state],
        disable_reason=DISABLE_REASONS.number.get(row.disable_reason),
        disable_time=timestamp(row.disabled_at),
        first_failure_time=timestamp(row.failing_since),
        last_error_class=row.last_error_class,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        pause_end_time=timestamp(row.paused_until) if paused else None,
    )


def delivery_to_proto(row: Delivery) -> pb.Delivery:
    return pb.Delivery(
        id=str(row.id),
        endpoint_id=str(row.endpoint_id),
        event_type=row.event_type,
        state=DELIVERY_STATES.number[row.state],
        attempts=row.attempts,
        create_time=timestamp(row.created_at),
        last_attempt_time=timestamp(row.last_attempt_at),
        next_attempt_time=timestamp(row.next_attempt_at),
        status_code=row.status_code,
        error_class=row.error_class,
        error_message=row.error_message,
        response_excerpt=row.response_excerpt,
    )
