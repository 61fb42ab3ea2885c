"""The contract of webhooks, as every service serves it for its own events."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

from atelier.webhooks.v1 import webhook_pb2 as pb
from atelier.webhooks.v1 import webhook_pb2_grpc
from google.rpc import error_details_pb2

from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.outbound import Outbound, OutboundRefused
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import Words, time_of, timestamp
from shared.settings import Settings
from shared.webhooks.event_types import PING, EventTypes, body
from shared.webhooks.signing import new_secret

MAX_ENDPOINTS = 50
_OVERLAP_SECONDS = 24 * 3600
_MOST_SECRETS = 5  # a header of signatures stays small

ENDPOINT_STATES = Words(pb.EndpointState, "ENDPOINT_STATE_")
DISABLE_REASONS = Words(pb.DisableReason, "DISABLE_REASON_")
DELIVERY_STATES = Words(pb.DeliveryState, "DELIVERY_STATE_")

_INSERT: LiteralString = """
    INSERT INTO webhook_endpoints (id, owner, created_by, url, description, event_types)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(url)s, %(description)s, %(event_types)s) RETURNING *
"""
_ENDPOINT: LiteralString = "SELECT * FROM webhook_endpoints WHERE owner = %(owner)s AND id = %(id)s"
_DELIVERY: LiteralString = (
    "SELECT * FROM webhook_deliveries WHERE owner = %(owner)s AND id = %(id)s"
)
_ENABLE: LiteralString = """
    UPDATE webhook_endpoints
    SET state = 'enabled', disable_reason = '', disabled_at = NULL, failing_since = NULL,
        last_error_class = '',
        paused_until = NULL, version = version + 1, updated_at = now()
    WHERE id = %s RETURNING *
"""
_DISABLE: LiteralString = """
    UPDATE webhook_endpoints
    SET state = 'disabled', disable_reason = 'asked', disabled_at = now(), replay_from = NULL,
        version = version + 1,
        updated_at = now()
    WHERE id = %s RETURNING *
"""
_END_SECRETS: LiteralString = """
    UPDATE webhook_secrets SET expires_at = least(expires_at, now() + %(overlap)s)
    WHERE owner = %(owner)s AND endpoint_id = %(id)s
"""
_SPENT_SECRETS: LiteralString = """
    DELETE FROM webhook_secrets
    WHERE owner = %(owner)s AND endpoint_id = %(id)s AND (expires_at <= now() OR version IN (
        SELECT version FROM webhook_secrets WHERE owner = %(owner)s AND endpoint_id = %(id)s
        ORDER BY version DESC OFFSET %(most)s))
"""
_BEGIN_AGAIN: LiteralString = """
    UPDATE webhook_deliveries
    SET state = 'pending', attempts_in_turn = 0, turn_began_at = now(), next_attempt_at = now(),
        ended_at = NULL
"""


def endpoint_to_proto(row: Any) -> pb.Endpoint:
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


def delivery_to_proto(row: Any) -> pb.Delivery:
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


class WebhookService(webhook_pb2_grpc.WebhookServiceServicer):
    def __init__(self, db: Database, settings: Settings, types: EventTypes) -> None:
        self._db = db
        self._types = types
        self._out = Outbound(settings, https_only=not settings.webhook_http)

    async def close(self) -> None:
        await self._out.close()

    async def CreateEndpoint(
        self, request: pb.CreateEndpointRequest, context: Any
    ) -> pb.CreateEndpointResponse:
        self._check_types(request.event_types)
        if await self._db.stored_answer(request, pb.CreateEndpointResponse) is None:
            await self._check_url(request.url)

        async def work(m: Mutation) -> pb.CreateEndpointResponse:
            await _check_room(m)
            values = {
                "id": new_id(),
                "owner": m.owner,
                "actor": m.actor,
                "url": request.url,
                "description": request.description,
                "event_types": sorted(request.event_types),
            }
            row = await m.one(_INSERT, values)
            await _add_secret(m, row)
            return pb.CreateEndpointResponse(endpoint=endpoint_to_proto(row))

        response = await self._db.mutate(request, pb.CreateEndpointResponse, work)
        response.secret = await self._secret_of(response.endpoint)
        return response

    async def GetEndpoint(
        self, request: pb.GetEndpointRequest, context: Any
    ) -> pb.GetEndpointResponse:
        row = await self._endpoint(parse_id(request.endpoint_id, "endpoint_id"))
        return pb.GetEndpointResponse(endpoint=endpoint_to_proto(row))

    async def ListEndpoints(
        self, request: pb.ListEndpointsRequest, context: Any
    ) -> pb.ListEndpointsResponse:
        page = paging.page(request)
        statement: Any = f"SELECT * FROM webhook_endpoints WHERE owner = %(owner)s{page.clause}"
        rows = await self._db.rows(statement, {"owner": auth.current().owner, **page.parameters})
        endpoints, token = page.fill(rows, map(endpoint_to_proto, rows))
        return pb.ListEndpointsResponse(endpoints=endpoints, next_page_token=token)

    async def UpdateEndpoint(
        self, request: pb.UpdateEndpointRequest, context: Any
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
            if request.etag and request.etag != str(row.version):
                raise errors.etag_mismatch("webhook endpoint", endpoint_id)
            values = {
                "id": endpoint_id,
                "url": request.url if "url" in paths else row.url,
                "event_types": (
                    sorted(request.event_types) if "event_types" in paths else row.event_types
                ),
                "description": request.description if "description" in paths else row.description,
            }
            row = await m.one(
                "UPDATE webhook_endpoints SET url = %(url)s, event_types = %(event_types)s,"
                " description = %(description)s, paused_until = CASE WHEN url = %(url)s THEN"
                " paused_until END, version = version + 1, updated_at = now() WHERE id = %(id)s"
                " RETURNING *",
                values,
            )
            return pb.UpdateEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.UpdateEndpointResponse, work)

    async def DeleteEndpoint(
        self, request: pb.DeleteEndpointRequest, context: Any
    ) -> pb.DeleteEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.DeleteEndpointResponse:
            await _lock(m, endpoint_id)
            await m.run("DELETE FROM webhook_endpoints WHERE id = %s", (endpoint_id,))
            return pb.DeleteEndpointResponse()

        return await self._db.mutate(request, pb.DeleteEndpointResponse, work)

    async def EnableEndpoint(
        self, request: pb.EnableEndpointRequest, context: Any
    ) -> pb.EnableEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        if await self._db.stored_answer(request, pb.EnableEndpointResponse) is None:
            await self._check_url((await self._endpoint(endpoint_id)).url)

        async def work(m: Mutation) -> pb.EnableEndpointResponse:
            row = await _lock(m, endpoint_id)
            if row.state == "disabled":
                row = await m.one(_ENABLE, (endpoint_id,))
                await m.run(
                    f"{_BEGIN_AGAIN} WHERE owner = %(owner)s AND endpoint_id = %(id)s AND state ="
                    " 'pending'",
                    {"owner": m.owner, "id": endpoint_id},
                )
            return pb.EnableEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.EnableEndpointResponse, work)

    async def DisableEndpoint(
        self, request: pb.DisableEndpointRequest, context: Any
    ) -> pb.DisableEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.DisableEndpointResponse:
            row = await _lock(m, endpoint_id)
            if row.state == "enabled":
                row = await m.one(_DISABLE, (endpoint_id,))
            return pb.DisableEndpointResponse(endpoint=endpoint_to_proto(row))

        return await self._db.mutate(request, pb.DisableEndpointResponse, work)

    async def RotateSecret(
        self, request: pb.RotateSecretRequest, context: Any
    ) -> pb.RotateSecretResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        seconds = (
            request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        )

        async def work(m: Mutation) -> pb.RotateSecretResponse:
            await _lock(m, endpoint_id)
            row = await m.one(
                "UPDATE webhook_endpoints SET version = version + 1, updated_at = now() WHERE id ="
                " %s RETURNING *",
                (endpoint_id,),
            )
            await m.run(
                _END_SECRETS,
                {"owner": m.owner, "id": endpoint_id, "overlap": timedelta(seconds=seconds)},
            )
            await _add_secret(m, row)
            await m.run(
                _SPENT_SECRETS, {"owner": m.owner, "id": endpoint_id, "most": _MOST_SECRETS}
            )
            return pb.RotateSecretResponse(endpoint=endpoint_to_proto(row))

        response = await self._db.mutate(request, pb.RotateSecretResponse, work)
        response.secret = await self._secret_of(response.endpoint)
        return response

    async def PingEndpoint(
        self, request: pb.PingEndpointRequest, context: Any
    ) -> pb.PingEndpointResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")

        async def work(m: Mutation) -> pb.PingEndpointResponse:
            _check_enabled(await _lock(m, endpoint_id))
            row = await m.one(
                "INSERT INTO webhook_deliveries (id, owner, endpoint_id, event_type, body)"
                " VALUES (%(id)s, %(owner)s, %(endpoint_id)s, %(type)s, %(body)s) RETURNING *",
                {
                    "id": new_id(),
                    "owner": m.owner,
                    "endpoint_id": endpoint_id,
                    "type": PING,
                    "body": body(PING, datetime.now(UTC), {"endpointId": str(endpoint_id)}),
                },
            )
            return pb.PingEndpointResponse(delivery=delivery_to_proto(row))

        return await self._db.mutate(request, pb.PingEndpointResponse, work)

    async def GetDelivery(
        self, request: pb.GetDeliveryRequest, context: Any
    ) -> pb.GetDeliveryResponse:
        delivery_id = parse_id(request.delivery_id, "delivery_id")
        row = await self._db.row(_DELIVERY, {"owner": auth.current().owner, "id": delivery_id})
        if row is None:
            raise errors.not_found("webhook delivery", delivery_id)
        return pb.GetDeliveryResponse(delivery=delivery_to_proto(row), body=row.body)

    async def ListDeliveries(
        self, request: pb.ListDeliveriesRequest, context: Any
    ) -> pb.ListDeliveriesResponse:
        endpoint_id = parse_id(request.endpoint_id, "endpoint_id")
        await self._endpoint(endpoint_id)
        page = paging.page(request)
        where = "owner = %(owner)s AND endpoint_id = %(endpoint_id)s"
        parameters = {"owner": auth.current().owner, "endpoint_id": endpoint_id, **page.parameters}
        if request.state:
            where += " AND state = %(state)s"
            parameters["state"] = DELIVERY_STATES.word[request.state]
        statement: Any = f"SELECT * FROM webhook_deliveries WHERE {where}{page.clause}"
        rows = await self._db.rows(statement, parameters)
        deliveries, token = page.fill(rows, map(delivery_to_proto, rows))
        return pb.ListDeliveriesResponse(deliveries=deliveries, next_page_token=token)

    async def ReplayDelivery(
        self, request: pb.ReplayDeliveryRequest, context: Any
    ) -> pb.ReplayDeliveryResponse:
        delivery_id = parse_id(request.delivery_id, "delivery_id")

        async def work(m: Mutation) -> pb.ReplayDeliveryResponse:
            row = await m.one(_DELIVERY, {"owner": m.owner, "id": delivery_id})
            if row is None:
                raise errors.not_found("webhook delivery", delivery_id)
            _check_enabled(await _lock(m, row.endpoint_id))
            row = await m.one(f"{_BEGIN_AGAIN} WHERE id = %s RETURNING *", (delivery_id,))
            if row is None:
                raise errors.not_found("webhook delivery", delivery_id)
            return pb.ReplayDeliveryResponse(delivery=delivery_to_proto(row))

        return await self._db.mutate(request, pb.ReplayDeliveryResponse, work)

    async def ReplaySince(
        self, request: pb.ReplaySinceRequest, context: Any
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
            await m.run(
                f"{_BEGIN_AGAIN} WHERE owner = %(owner)s AND endpoint_id = %(id)s AND created_at >="
                " %(since)s AND (state = 'failed' OR %(all)s AND state = 'delivered')",
                parameters,
            )
            first = await m.one(
                "SELECT min(position) AS position, min(created_at) AS at FROM events"
                " WHERE owner = %(owner)s AND position IS NOT NULL AND created_at >= %(since)s",
                parameters,
            )
            if first.position is not None:
                # The dispatcher makes deliveries of what has none yet.
                await m.run(
                    "UPDATE webhook_endpoints SET replay_from = %(from)s,"
                    " replay_to = (SELECT position FROM event_stream) WHERE id = %(id)s",
                    {"id": endpoint_id, "from": first.position - 1},
                )
            return pb.ReplaySinceResponse(from_time=timestamp(first.at))

        return await self._db.mutate(request, pb.ReplaySinceResponse, work)

    async def ListEventTypes(
        self, request: pb.ListEventTypesRequest, context: Any
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

    async def _endpoint(self, endpoint_id: UUID) -> Any:
        row = await self._db.row(_ENDPOINT, {"owner": auth.current().owner, "id": endpoint_id})
        if row is None:
            raise errors.not_found("webhook endpoint", endpoint_id)
        return row

    async def _secret_of(self, endpoint: pb.Endpoint) -> str:
        """The secret that came with this version of the endpoint. It is added to answers after they
        were stored."""
        row = await self._db.row(
            "SELECT secret FROM webhook_secrets WHERE owner = %(owner)s AND endpoint_id = %(id)s"
            " AND version = %(version)s AND (expires_at IS NULL OR expires_at > now())",
            {"owner": endpoint.owner, "id": UUID(endpoint.id), "version": int(endpoint.etag)},
        )
        return row.secret if row else ""


async def _lock(m: Mutation, endpoint_id: UUID) -> Any:
    """The owner's endpoint, locked until the commit. NOT_FOUND if it isn't theirs."""
    row = await m.one(f"{_ENDPOINT} FOR UPDATE", {"owner": m.owner, "id": endpoint_id})
    if row is None:
        raise errors.not_found("webhook endpoint", endpoint_id)
    return row


def _check_enabled(endpoint: Any) -> None:
    if endpoint.state == "disabled":
        text = "it is disabled; enable it first"
        raise errors.precondition(text, subject=f"webhookEndpoints/{endpoint.id}")


async def _check_room(m: Mutation) -> None:
    """One at a time per owner: two at once would both find the last place."""
    await m.run(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 2))", (f"webhooks\x1f{m.owner}",)
    )
    row = await m.one("SELECT count(*) AS n FROM webhook_endpoints WHERE owner = %s", (m.owner,))
    if row.n >= MAX_ENDPOINTS:
        text = (
            f"you have {row.n} webhook endpoints here, and {MAX_ENDPOINTS} is the limit; delete one"
        )
        failure = error_details_pb2.QuotaFailure(
            violations=[error_details_pb2.QuotaFailure.Violation(subject=m.owner, description=text)]
        )
        raise DomainError(Reason.ERROR_REASON_QUOTA_EXCEEDED, text, details=[failure])


async def _add_secret(m: Mutation, endpoint: Any) -> None:
    await m.run(
        "INSERT INTO webhook_secrets (owner, endpoint_id, version, secret)"
        " VALUES (%(owner)s, %(id)s, %(version)s, %(secret)s)",
        {"owner": m.owner, "id": endpoint.id, "version": endpoint.version, "secret": new_secret()},
    )
