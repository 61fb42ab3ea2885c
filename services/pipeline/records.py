"""Rows as messages (pure), and telling watchers of them (`publish_*`, within the transaction of the
change)."""

from collections.abc import Mapping, Sequence
from typing import Any

from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2
from google.protobuf import json_format

from services.pipeline import rules
from shared.background import events
from shared.database.db import Mutation
from shared.rpc import views
from shared.rpc.protos import Words, facts_message, timestamp, wait_of

PRODUCT_STATES = Words(product_pb2.ProductState, "PRODUCT_STATE_")
PHASE_STATES = Words(phase_pb2.PhaseState, "PHASE_STATE_")
REVIEW_STATES = Words(review_pb2.ReviewState, "REVIEW_STATE_")
SOURCES = Words(result_pb2.ResultSource, "RESULT_SOURCE_")
PROVIDERS = Words(product_pb2.MarketProvider, "MARKET_PROVIDER_")
VALUES: Mapping[int, str] = {
    field.number: field.name
    for field in result_pb2.PhaseValue.DESCRIPTOR.oneofs_by_name["value"].fields
}
"""The field of PhaseValue that belongs to a phase."""

_IMAGES = (
    "SELECT * FROM product_images WHERE product_id = ANY(%(ids)s) ORDER BY product_id, position"
)


def plain(message: Any) -> dict[str, Any]:
    """A message's JSON as it is stored: fields by their names, absent ones left out."""
    made: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return made


def value(stored: Mapping[str, Any]) -> result_pb2.PhaseValue:
    return json_format.ParseDict(dict(stored), result_pb2.PhaseValue())


def evidence(stored: Sequence[Mapping[str, Any]]) -> list[result_pb2.Evidence]:
    return [result_pb2.Evidence(**item) for item in stored]


def image(row: Any) -> product_pb2.ProductImage:
    return product_pb2.ProductImage(
        asset_id=str(row.asset_id),
        view=row.view,
        view_type=views.type_of(row.view),
        primary=row.is_primary,
    )


def product(
    row: Any, images: Sequence[Any], phases: Sequence[Any] = (), *, with_facts: bool = False
) -> product_pb2.Product:
    """`images` and `phases` are rows, in order."""
    message = product_pb2.Product(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        name=row.name,
        model=row.model,
        state=PRODUCT_STATES.number[row.state],
        is_pipeline_running=row.running,
        requires_manual_review=row.state == "awaiting_review",
        confidence=row.confidence,
        auto_advance=row.auto_advance,
        external_phases=row.external_phases,
        market_provider=PROVIDERS.number[row.market_provider],
        images=[image(item) for item in images],
        phases=[phase(item) for item in phases],
        error_class=row.error_class,
        error_message=row.error_message,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    if with_facts:
        message.facts.CopyFrom(facts_message(row.facts))
    return message


def phase(row: Any) -> phase_pb2.Phase:
    return phase_pb2.Phase(
        id=str(row.id),
        product_id=str(row.product_id),
        number=row.number,
        state=PHASE_STATES.number[row.state],
        due=rules.is_due(row),
        external=row.external,
        retry_count=row.retry_count,
        attempt_number=row.attempt_number,
        stop_requested=row.state == "running" and row.cancel_requested,
        confidence=row.confidence,
        error_class=row.error_class,
        error_message=row.error_message,
        start_time=timestamp(row.started_at),
        wait=wait_of(row),
        complete_time=timestamp(row.completed_at),
        stop_time=timestamp(row.stopped_at),
        lease_expire_time=timestamp(row.lease_expires_at),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def result(row: Any) -> result_pb2.PhaseResult:
    return result_pb2.PhaseResult(
        id=str(row.id),
        product_id=str(row.product_id),
        phase=row.phase,
        value=value(row.value),
        confidence=row.confidence,
        source=SOURCES.number[row.source],
        provider=row.provider,
        evidence=evidence(row.evidence),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def review(row: Any) -> review_pb2.Review:
    message = review_pb2.Review(
        id=str(row.id),
        product_id=str(row.product_id),
        phase=row.phase,
        state=REVIEW_STATES.number[row.state],
        model_value=value(row.model_value),
        model_confidence=row.model_confidence,
        evidence=evidence(row.evidence),
        note=row.note,
        claimed_by=row.claimed_by,
        claim_expire_time=timestamp(row.claim_expires_at),
        decided_by=row.decided_by,
        decide_time=timestamp(row.decided_at),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    if row.reviewer_value is not None:
        message.reviewer_value.CopyFrom(value(row.reviewer_value))
    if row.effective_value is not None:
        message.effective_value.CopyFrom(value(row.effective_value))
    return message


async def publish_product(m: Mutation, row: Any) -> None:
    images = await m.all(_IMAGES, {"ids": [row.id]})
    await events.publish(m, "product", row.id, row.version, product(row, images))


async def publish_phase(m: Mutation, row: Any) -> None:
    await events.publish(m, "phase", row.id, row.version, phase(row))


async def publish_result(m: Mutation, row: Any) -> None:
    await events.publish(m, "result", row.id, row.version, result(row))


async def publish_review(m: Mutation, row: Any) -> None:
    await events.publish(m, "review", row.id, row.version, review(row))
