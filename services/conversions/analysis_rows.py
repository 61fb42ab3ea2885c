"""Analyses: the row class, its message and its kind of job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import job_pb2
from psycopg.types.json import Jsonb

from services.conversions.job_rows import InputPicture, JobKind, ModelJob, common_fields
from services.conversions.prices import Priced
from services.conversions.rules import FindingRow
from shared.database.rows import Table
from shared.rpc import protos, views
from shared.rpc.protos import EnumNames

TASKS = EnumNames(pb.AnalysisTask, "ANALYSIS_TASK_")
SOURCES = EnumNames(pb.ValueSource, "VALUE_SOURCE_")


class AnalysedImage(TypedDict):
    asset_id: str
    view: str


@dataclass(slots=True)
class Analysis(ModelJob):
    task: str
    images: list[AnalysedImage]
    facts: dict[str, Any]  # in the plain form of shared.formats.facts
    result: dict[str, Any] | None  # its keys are those of rules.ANALYSIS_KEYS
    findings: list[FindingRow]

    @property
    def model_task(self) -> str:
        return f"analysis.{self.task}"

    def inputs(self) -> list[InputPicture]:
        return [
            InputPicture(image["view"] or f"picture {number}", UUID(image["asset_id"]))
            for number, image in enumerate(self.images, start=1)
        ]

    def result_columns(self) -> dict[str, object]:
        return {
            "result": None if self.result is None else Jsonb(self.result),
            "findings": Jsonb(self.findings),
        }


ANALYSES = Table("analyses", Analysis)


def to_proto(row: Analysis) -> pb.Analysis:
    analysis = pb.Analysis(
        **common_fields(row),
        task=TASKS.number[row.task],
        images=[
            pb.AnalysisImage(**image, view_type=views.type_of(image["view"]))
            for image in row.images
        ],
        facts=protos.facts_message(row.facts),
        findings=map(_finding, row.findings),
        consent_ids=[str(each) for each in row.consent_ids],
    )
    if row.result is not None:
        analysis.result.CopyFrom(protos.struct(row.result))
    return analysis


def _finding(stored: FindingRow) -> pb.Finding:
    box = stored["box"]
    return pb.Finding(
        key=stored["key"],
        value=protos.struct({"value": stored["value"]}).fields["value"],
        source=SOURCES.number[stored["source"]],
        model=stored["model"],
        confidence=stored["confidence"],
        note=stored["note"],
        picture=stored["picture"],
        box=pb.Box(left=box[0], top=box[1], width=box[2], height=box[3]) if box else None,
        disagrees=stored["disagrees"],
    )


def _priced(columns: Mapping[str, Any]) -> Priced:
    images = columns["images"]
    # A new row has the list in the form that is stored.
    pictures = images.obj if isinstance(images, Jsonb) else images
    return Priced("analysis", columns["task"], references=len(pictures))


KIND = JobKind(
    "analysis",
    job_pb2.JOB_KIND_ANALYSIS,
    ANALYSES,
    pb.Analysis,
    to_proto,
    _priced,
    pb.PurgedAnalysis,
)
