"""Cases for the webhooks that every service serves for itself."""

from dataclasses import dataclass
from typing import Any

from atelier.webhooks.v1 import webhook_pb2 as pb

from tests.suite import Client, Suite
from tests.tenancy_cases import NOT_FOUND, Case, nothing
from tests.webhooks import flows

# Nothing listens there, and no name is looked up.
SETTINGS = {"outbound_allowed_networks": "127.0.0.0/8"}
_URL = "https://127.0.0.1:18443/"


@dataclass
class Owned:
    """Rows of one owner in one service."""

    endpoint_id: str
    doomed_id: str
    paused_id: str
    delivery_id: str
    made: Any


async def prepare(service: str, suite: Suite, owner: Client, canary: str) -> Owned:
    stub = flows.stub(owner, service)
    request = pb.CreateEndpointRequest(url=f"{_URL}{canary}", description=canary)
    made = await stub.CreateEndpoint(request)
    doomed, paused = await stub.CreateEndpoint(request), await stub.CreateEndpoint(request)
    ping = await stub.PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.endpoint.id))
    return Owned(
        made.endpoint.id,
        doomed.endpoint.id,
        paused.endpoint.id,
        ping.delivery.id,
        made.endpoint.create_time,
    )


_WEBHOOKS = "atelier.webhooks.v1.WebhookService."

CASES = {
    _WEBHOOKS + "CreateEndpoint": Case(
        lambda o: pb.CreateEndpointRequest(request_id=f"create {o.endpoint_id}", url=_URL), nothing
    ),
    _WEBHOOKS + "GetEndpoint": Case(
        lambda o: pb.GetEndpointRequest(endpoint_id=o.endpoint_id), NOT_FOUND
    ),
    # The others have endpoints of their own by now, which don't show the canary.
    _WEBHOOKS + "ListEndpoints": Case(lambda o: pb.ListEndpointsRequest(), nothing),
    _WEBHOOKS + "UpdateEndpoint": Case(
        lambda o: pb.UpdateEndpointRequest(
            request_id=f"update {o.endpoint_id}",
            endpoint_id=o.endpoint_id,
            update_mask={"paths": ["description"]},
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "DeleteEndpoint": Case(
        lambda o: pb.DeleteEndpointRequest(
            request_id=f"delete {o.doomed_id}", endpoint_id=o.doomed_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "EnableEndpoint": Case(
        lambda o: pb.EnableEndpointRequest(
            request_id=f"enable {o.endpoint_id}", endpoint_id=o.endpoint_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "DisableEndpoint": Case(
        lambda o: pb.DisableEndpointRequest(
            request_id=f"disable {o.paused_id}", endpoint_id=o.paused_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "RotateSecret": Case(
        lambda o: pb.RotateSecretRequest(
            request_id=f"rotate {o.endpoint_id}", endpoint_id=o.endpoint_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "PingEndpoint": Case(
        lambda o: pb.PingEndpointRequest(
            request_id=f"ping {o.endpoint_id}", endpoint_id=o.endpoint_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "GetDelivery": Case(
        lambda o: pb.GetDeliveryRequest(delivery_id=o.delivery_id), NOT_FOUND
    ),
    _WEBHOOKS + "ListDeliveries": Case(
        lambda o: pb.ListDeliveriesRequest(endpoint_id=o.endpoint_id), NOT_FOUND
    ),
    _WEBHOOKS + "ReplayDelivery": Case(
        lambda o: pb.ReplayDeliveryRequest(
            request_id=f"replay {o.delivery_id}", delivery_id=o.delivery_id
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "ReplaySince": Case(
        lambda o: pb.ReplaySinceRequest(
            request_id=f"since {o.endpoint_id}", endpoint_id=o.endpoint_id, since=o.made
        ),
        NOT_FOUND,
    ),
    _WEBHOOKS + "ListEventTypes": Case(lambda o: pb.ListEventTypesRequest(), nothing),
}
