"""The servicer of webhooks, with which every service serves its own events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from atelier.webhooks.v1 import webhook_pb2 as pb
from atelier.webhooks.v1 import webhook_pb2_grpc
from google.rpc import error_details_pb2

from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Command, Statement
from shared.outbound import Outbound, OutboundRefused
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.origin import Context
from shared.rpc.protos import time_of, timestamp
from shared.settings import Settings
from shared.webhooks.event_types import PING, EventTypes, body
from shared.webhooks.rows import (
    DELIVERIES,
    DELIVERY_STATES,
    ENDPOINTS,
    SECRETS,
    Delivery,
    Endpoint,
    LockedEndpoint,
    Secret,
    delivery_to_proto,
    endpoint_to_proto,
)
from shared.webhooks.signing import new_secret

MAX_ENDPOINTS = 50
_OVERLAP_SECONDS = 24 * 3600
_MOST_SECRETS = 5  # keeps the header of signatures small

_SELECT_ENDPOINT = Statement(
    Endpoint,
    f"SELECT {ENDPOINTS.columns} FROM webhook_endpoints WHERE owner = %(owner)s AND id = %(id)s",
)
_LOCK_ENDPOINT = Statement(LockedEndpoint, f"{_SELECT_ENDPOINT.text} FOR UPDATE")
_LIST_ENDPOINTS = Listing(ENDPOINTS, Endpoint)
_LOCK_OWNER = Command("SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 2))")
_COUNT_ENDPOINTS = Statement(int, "SELECT count(*) FROM webhook_endpoints WHERE owner = %(owner)s")
_INSERT_ENDPOINT = ENDPOINTS.insert(
    "id", "owner", "created_by", "url", "description", "event_types"
)
_UPDATE_ENDPOINT = Statement(
    LockedEndpoint,
    f"""
    UPDATE webhook_endpoints
    SET url = %(url)s, event_types = %(event_types)s, description = %(description)s,
        paused_until = CASE WHEN url = %(url)s THEN paused_until END,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ENDPOINTS.columns}
    """,
)
_ENABLE_ENDPOINT = Statement(
    LockedEndpoint,
    f"""
    UPDATE webhook_endpoints
    SET state = 'enabled', disable_reason = '', disabled_at = NULL, failing_since = NULL,
        last_error_class = '', paused_until = NULL, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ENDPOINTS.columns}
    """,
)
_DISABLE_ENDPOINT = Statement(
    LockedEndpoint,
    f"""
    UPDATE webhook_endpoints
    SET state = 'disabled', disable_reason = 'asked', disabled_at = now(), replay_from = NULL,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ENDPOINTS.columns}
    """,
)
_RAISE_VERSION = Statement(
    LockedEndpoint,
    f"""
    UPDATE webhook_endpoints SET version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ENDPOINTS.columns}
    """,
)
_DELETE_ENDPOINT = Command("DELETE FROM webhook_endpoints WHERE id = %(id)s")

_SELECT_SECRET = Statement(
    Secret,
    f"""
    SELECT {SECRETS.columns} FROM webhook_secrets
    WHERE owner = %(owner)s AND endpoint_id = %(id)s AND version = %(version)s
      AND (expires_at IS NULL OR expires_at > now())
    """,
)
_INSERT_SECRET = Command("""
    INSERT INTO webhook_secrets (owner, endpoint_id, version, secret)
    VALUES (%(owner)s, %(id)s, %(version)s, %(secret)s)
""")
_EXPIRE_SECRETS = Command("""
    UPDATE webhook_secrets SET expires_at = least(expires_at, now() + %(overlap)s::interval)
    WHERE owner = %(owner)s AND endpoint_id = %(id)s
""")
_DELETE_SPENT_SECRETS = Command("""
    DELETE FROM webhook_secrets
    WHERE owner = %(owner)s AND endpoint_id = %(id)s AND (expires_at <= now() OR version IN (
        SELECT version FROM webhook_secrets WHERE owner = %(owner)s AND endpoint_id = %(id)s
        ORDER BY version DESC OFFSET %(most)s))
""")

_SELECT_DELIVERY = Statement(
    Delivery,
    f"SELECT {DELIVERIES.columns} FROM webhook_deliveries WHERE owner = %(owner)s AND id = %(id)s",
)
_LIST_DELIVERIES = Listing(DELIVERIES, Delivery)
_INSERT_DELIVERY = DELIVERIES.insert("id", "owner", "endpoint_id", "event_type", "body")
_BEGIN_TURN = """
    UPDATE webhook_deliveries
    SET state = 'pending', attempts_in_turn = 0, turn_began_at = now(), next_attempt_at = now(),
        ended_at = NULL
"""
_REPLAY_DELIVERY = Statement(
    Delivery, f"{_BEGIN_TURN} WHERE id = %(id)s RETURNING {DELIVERIES.columns}"
)
_RESTART_PENDING = Command(
    f"{_BEGIN_TURN} WHERE owner = %(owner)s AND endpoint_id = %(id)s AND state = 'pending'"
)
_REPLAY_SINCE = Command(f"""{_BEGIN_TURN}
    WHERE owner = %(owner)s AND endpoint_id = %(id)s AND created_at >= %(since)s
      AND (state = 'failed' OR %(all)s AND state = 'delivered')
""")


@dataclass(slots=True)
class _FirstEvent:
    position: int | None
    at: datetime | None


_SELECT_FIRST_EVENT = Statement(
    _FirstEvent,
    """
    SELECT min(position) AS position, min(created_at) AS at FROM events
    WHERE owner = %(owner)s AND position IS NOT NULL AND created_at >= %(since)s
    """,
)
_REPLAY_FROM = Command("""
    UPDATE webhook_endpoints
    SET replay_from = %(from)s, replay_to = (SELECT position FROM event_stream)
    WHERE id = %(id)s
""")


class WebhookService(webhook_pb2_grpc.WebhookServiceServicer):
    def __init__(self, db: Database, settings: Settings, types: EventTypes) -> None:
        self._db = db
        self._types = types
        self._out = Outbound(settings, https_only=not settings.webhook_http)

    async def close(self) -> None:
        await self._out.close()

    async def CreateEndpoint(
        self, request: pb.CreateEndpointRequest, context: Context
    ) -> pb.CreateEndpointResponse:
        self._check_types(request.event_types)
        if await self._db.stored_answer(request, pb.CreateEndpointResponse) is None:
            await self._check_url(request.url)

        async def work(m: Mutation) -> pb.CreateEndpointResponse:
            await _check_room(m)
            values = {
                "id": new_id(),
                "owner": m.owner,
                "created_by": m.actor,
                "url": request.url,
                "description": request.description,
                "event_types": sorted(request.event_types),
            }
            row = await m.one(_INSERT_ENDPOINT, values)
            await _add_secret(m, row)
            return pb.CreateEndpointResponse(endpoint=endpoint_to_proto(row))

        response = await self._db.mutate(request, pb.CreateEndpointResponse, work)
        response.secret = await self._secret_of(response.endpoint)
        return response

    async def GetEndpoint(
        self, request: pb.GetEndpointRequest, context: Context
    ) -> pb.GetEndpointResponse:
        row = await self._endpoint(parse_id(request.endpoint_id, "endpoint_id"))
        return pb.GetEndpointResponse(endpoint=endpoint_to_proto(row))

    async def ListEndpoints(
        self, request: pb.ListEndpointsRequest, context: Context
    ) -> pb.ListEndpointsResponse:
        page = paging.page(request)
        rows = await self._db.all(*_LIST_ENDPOINTS.query(page, {}))
        endpoints, token = page.fill(rows, map(endpoint_to_proto, rows))
        return pb.ListEndpointsResponse(endpoints=endpoints, next_page_token=token)

    async def UpdateEndpoint(
        self, request: pb.UpdateEndpointRequest, context: Context
    ) -> pb.UpdateEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        paths = set(request.update_mask.paths)
        if "event_types" in paths:
            self._check_types(request.event_types)
        if (
            "url" in paths
            and await self._db.stored_answer(request, pb.UpdateEndpointResponse) is None
        ):
            await self._check_url(request.url)

        async def work(m: Mutation) -> pb.UpdateEndpointResponse:
            row = await _lock(m, endpoint_id)
            errors.check_etag(request.etag, row.version, "webhook endpoint", endpoint_id)
            values = {
                "id": endpoint_id,
                "url": request.url if "url" in paths else row.url,
                "event_types": (
                    sorted(request.event_types) if "event_types" in paths else row.event_types
                ),
                "description": request.description if "description" in paths else row.description,
            }
            row = await m.one(_UPDATE_ENDPOINT, values)
            return pb.UpdateEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.UpdateEndpointResponse, work)

    async def DeleteEndpoint(
        self, request: pb.DeleteEndpointRequest, context: Context
    ) -> pb.DeleteEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.DeleteEndpointResponse:
            await _lock(m, endpoint_id)
            await m.run(_DELETE_ENDPOINT, {"id": endpoint_id})
            return pb.DeleteEndpointResponse()

        return await self._db.mutate(request, pb.DeleteEndpointResponse, work)

    async def EnableEndpoint(
        self, request: pb.EnableEndpointRequest, context: Context
    ) -> pb.EnableEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        if await self._db.stored_answer(request, pb.EnableEndpointResponse) is None:
            await self._check_url((await self._endpoint(endpoint_id)).url)

        async def work(m: Mutation) -> pb.EnableEndpointResponse:
            row = await _lock(m, endpoint_id)
            if row.state == "disabled":
                row = await m.one(_ENABLE_ENDPOINT, {"id": endpoint_id})
                await m.run(_RESTART_PENDING, {"owner": m.owner, "id": endpoint_id})
            return pb.EnableEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.EnableEndpointResponse, work)

    async def DisableEndpoint(
        self, request: pb.DisableEndpointRequest, context: Context
    ) -> pb.DisableEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.DisableEndpointResponse:
            row = await _lock(m, endpoint_id)
            if row.state == "enabled":
                row = await m.one(_DISABLE_ENDPOINT, {"id": endpoint_id})
            return pb.DisableEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.DisableEndpointResponse, work)

    async def RotateSecret(
        self, request: pb.RotateSecretRequest, context: Context
    ) -> pb.RotateSecretResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        seconds = (
            request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        )

        async def work(m: Mutation) -> pb.RotateSecretResponse:
            await _lock(m, endpoint_id)
            row = await m.one(_RAISE_VERSION, {"id": endpoint_id})
            mine = {"owner": m.owner, "id": endpoint_id}
            await m.run(_EXPIRE_SECRETS, {**mine, "overlap": timedelta(seconds=seconds)})
            await _add_secret(m, row)
            await m.run(_DELETE_SPENT_SECRETS, {**mine, "most": _MOST_SECRETS})
            return pb.RotateSecretResponse(endpoint=endpoint_to_proto(row))

        response = await self._db.mutate(request, pb.RotateSecretResponse, work)
        response.secret = await self._secret_of(response.endpoint)
        return response

    async def PingEndpoint(
        self, request: pb.PingEndpointRequest, context: Context
    ) -> pb.PingEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.PingEndpointResponse:
            _check_enabled(await _lock(m, endpoint_id))
            row = await m.one(
                _INSERT_DELIVERY,
                {
                    "id": new_id(),
                    "owner": m.owner,
                    "endpoint_id": endpoint_id,
                    "event_type": PING,
                    "body": body(PING, datetime.now(UTC), {"endpointId": str(endpoint_id)}),
                },
            )
            return pb.PingEndpointResponse(delivery=delivery_to_proto(row))

        return await self._db.mutate(request, pb.PingEndpointResponse, work)

    async def GetDelivery(
        self, request: pb.GetDeliveryRequest, context: Context
    ) -> pb.GetDeliveryResponse:
        delivery_id = parse_id(request.delivery_id, "delivery_id")
        mine = {"owner": auth.current().owner, "id": delivery_id}
        row = await self._db.first(_SELECT_DELIVERY, mine)
        if row is None:
            raise errors.not_found("webhook delivery", delivery_id)
        return pb.GetDeliveryResponse(delivery=delivery_to_proto(row), body=row.body)

    async def ListDeliveries(
        self, request: pb.ListDeliveriesRequest, context: Context
    ) -> pb.ListDeliveriesResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        await self._endpoint(endpoint_id)
        page = paging.page(request)
        wanted = {
            "endpoint_id": endpoint_id,
            "state": request.state and DELIVERY_STATES.word[request.state],
        }
        rows = await self._db.all(*_LIST_DELIVERIES.query(page, wanted))
        deliveries, token = page.fill(rows, map(delivery_to_proto, rows))
        return pb.ListDeliveriesResponse(deliveries=deliveries, next_page_token=token)

    async def ReplayDelivery(
        self, request: pb.ReplayDeliveryRequest, context: Context
    ) -> pb.ReplayDeliveryResponse:
        delivery_id = parse_id(request.delivery_id, "delivery_id")

        async def work(m: Mutation) -> pb.ReplayDeliveryResponse:
            row = await m.first(_SELECT_DELIVERY, {"owner": m.owner, "id": delivery_id})
            if row is None:
                raise errors.not_found("webhook delivery", delivery_id)
            _check_enabled(await _lock(m, row.endpoint_id))
            row = await m.first(_REPLAY_DELIVERY, {"id": delivery_id})
            if row is None:
                raise errors.not_found("webhook delivery", delivery_id)
            return pb.ReplayDeliveryResponse(delivery=delivery_to_proto(row))

        return await self._db.mutate(request, pb.ReplayDeliveryResponse, work)

    async def ReplaySince(
        self, request: pb.ReplaySinceRequest, context: Context
    ) -> pb.ReplaySinceResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        since = time_of(request.since, True, "since")

        async def work(m: Mutation) -> pb.ReplaySinceResponse:
            _check_enabled(await _lock(m, endpoint_id))
            parameters = {
                "owner": m.owner,
                "id": endpoint_id,
                "since": since,
                "all": request.include_delivered,
            }
            await m.run(_REPLAY_SINCE, parameters)
            first = await m.one(_SELECT_FIRST_EVENT, parameters)
            if first.position is not None:
                # The dispatcher makes deliveries of events that have none yet.
                await m.run(_REPLAY_FROM, {"id": endpoint_id, "from": first.position - 1})
            return pb.ReplaySinceResponse(from_time=timestamp(first.at))

        return await self._db.mutate(request, pb.ReplaySinceResponse, work)

    async def ListEventTypes(
        self, request: pb.ListEventTypesRequest, context: Context
    ) -> pb.ListEventTypesResponse:
        known = sorted(self._types.messages.items())
        return pb.ListEventTypesResponse(
            event_types=[pb.EventType(name=n, data_message=m) for n, m in known]
        )

    def _check_types(self, names: Sequence[str]) -> None:
        known = sorted(self._types.messages)
        unknown = [
            (f"event_types[{index}]", f"there is no type {name!r}; there are {', '.join(known)}")
            for index, name in enumerate(names)
            if name not in self._types.messages
        ]
        if unknown:
            raise errors.invalid_fields(unknown[:1])

    async def _check_url(self, url: str) -> None:
        try:
            await self._out.check_url(url)
        except OutboundRefused as refusal:
            raise errors.invalid("url", str(refusal)) from None

    async def _endpoint(self, endpoint_id: UUID) -> Endpoint:
        mine = {"owner": auth.current().owner, "id": endpoint_id}
        row = await self._db.first(_SELECT_ENDPOINT, mine)
        if row is None:
            raise errors.not_found("webhook endpoint", endpoint_id)
        return row

    async def _secret_of(self, endpoint: pb.Endpoint) -> str:
        """Returns the secret that came with this version of the endpoint; '' if it is gone. It is
        added to answers after they were stored, so that these don't hold it."""
        row = await self._db.first(
            _SELECT_SECRET,
            {"owner": endpoint.owner, "id": UUID(endpoint.id), "version": int(endpoint.etag)},
        )
        return row.secret if row else ""


async def _lock(m: Mutation, endpoint_id: UUID) -> LockedEndpoint:
    """Returns the owner's endpoint, locked until the commit. Raises NOT_FOUND."""
    row = await m.first(_LOCK_ENDPOINT, {"owner": m.owner, "id": endpoint_id})
    if row is None:
        raise errors.not_found("webhook endpoint", endpoint_id)
    return row


def _check_enabled(endpoint: LockedEndpoint) -> None:
    if endpoint.state == "disabled":
        text = "it is disabled; enable it first"
        raise errors.precondition(text, subject=f"webhookEndpoints/{endpoint.id}")


async def _check_room(m: Mutation) -> None:
    """Raises QUOTA_EXCEEDED if the owner has the most endpoints allowed. Serialised per owner: two
    concurrent calls would both find the last place."""
    await m.run(_LOCK_OWNER, {"name": f"webhooks\x1f{m.owner}"})
    count = await m.one(_COUNT_ENDPOINTS, {"owner": m.owner})
    if count >= MAX_ENDPOINTS:
        text = (
            f"you have {count} webhook endpoints here, and {MAX_ENDPOINTS} is the limit; delete one"
        )
        failure = error_details_pb2.QuotaFailure(
            violations=[error_details_pb2.QuotaFailure.Violation(subject=m.owner, description=text)]
        )
        raise DomainError(Reason.ERROR_REASON_QUOTA_EXCEEDED, text, details=[failure])


async def _add_secret(m: Mutation, endpoint: LockedEndpoint) -> None:
    await m.run(
        _INSERT_SECRET,
        {"owner": m.owner, "id": endpoint.id, "version": endpoint.version, "secret": new_secret()},
    )
