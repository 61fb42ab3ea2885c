"""Results of phases: the row class, its message, the JSON of a phase's value, and publishing a
result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import finding_pb2, result_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from services.pipeline.sources import Finding
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc.protos import EnumNames, timestamp

SOURCES = EnumNames(result_pb2.ResultSource, "RESULT_SOURCE_")
VALUE_SOURCES = EnumNames(finding_pb2.ValueSource, "VALUE_SOURCE_")
VALUES: Mapping[int, str] = {
    field.number: field.name
    for field in result_pb2.PhaseValue.DESCRIPTOR.oneofs_by_name["value"].fields
}
"""The field of PhaseValue that holds a phase's value, by the phase's number."""


@dataclass(slots=True)
class Result:
    id: UUID
    owner: str
    product_id: UUID
    phase: int
    version: int
    value: dict[str, Any]  # JSON of a PhaseValue
    confidence: float | None
    source: str
    provider: str
    evidence: list[dict[str, Any]]  # JSON of Evidence
    created_at: datetime
    updated_at: datetime
    findings: list[Finding]
    inputs_at: datetime  # when what the phase was given was read, or before


RESULTS = Table("results", Result)
SELECT_RESULTS = Statement(
    Result,
    f"""
    SELECT {RESULTS.columns} FROM results WHERE product_id = ANY(%(ids)s)
    ORDER BY product_id, phase
""",
)
UPSERT_RESULT = Statement(
    Result,
    f"""
    INSERT INTO results AS r
        (id, owner, product_id, phase, value, confidence, source, provider, evidence, findings,
         inputs_at)
    VALUES (%(id)s, %(owner)s, %(product_id)s, %(phase)s, %(value)s, %(confidence)s, %(source)s,
        %(provider)s, %(evidence)s, %(findings)s, coalesce(%(inputs_at)s::timestamptz, now()))
    ON CONFLICT (product_id, phase) DO UPDATE SET version = r.version + 1, updated_at = now(),
        value = excluded.value, confidence = excluded.confidence, source = excluded.source,
        provider = excluded.provider, evidence = excluded.evidence, findings = excluded.findings,
        inputs_at = excluded.inputs_at
    RETURNING {RESULTS.columns}
""",
)


def plain(message: Message) -> dict[str, Any]:
    """Returns a message's JSON as it is stored: fields by their names, absent ones left out."""
    made: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return made


def value(stored: Mapping[str, Any]) -> result_pb2.PhaseValue:
    return json_format.ParseDict(dict(stored), result_pb2.PhaseValue())


def evidence(stored: Sequence[Mapping[str, Any]]) -> list[result_pb2.Evidence]:
    return [result_pb2.Evidence(**item) for item in stored]


def findings(stored: Sequence[Finding]) -> list[finding_pb2.Finding]:
    return [_finding(each) for each in stored]


def _finding(each: Finding) -> finding_pb2.Finding:
    message = finding_pb2.Finding(
        key=each["key"],
        source=VALUE_SOURCES.number[each["source"]],
        model=each["model"],
        confidence=each["confidence"],
        note=each["note"],
        asset_id=each["asset_id"],
        disagrees=each["disagrees"],
        confirmed_by=each["confirmed_by"],
        review_id=each["review_id"],
    )
    json_format.ParseDict(each["value"], message.value)
    if box := each["box"]:
        left, top, width, height = box
        message.box.CopyFrom(finding_pb2.PictureBox(left=left, top=top, width=width, height=height))
    return message


def to_proto(row: Result) -> result_pb2.PhaseResult:
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
        findings=findings(row.findings),
    )


async def publish(m: Mutation, row: Result) -> None:
    await events.publish(m, "result", row.id, row.version, to_proto(row))
