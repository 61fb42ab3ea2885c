"""Analyses: the row class, its message and its kind of job."""

from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import job_pb2

from services.conversions.job_rows import InputPicture, JobKind, ModelJob, common_fields
from shared.database.rows import Table
from shared.rpc import protos, views
from shared.rpc.protos import EnumNames

TASKS = EnumNames(pb.AnalysisTask, "ANALYSIS_TASK_")


class AnalysedImage(TypedDict):
    asset_id: str
    view: str


@dataclass(slots=True)
class Analysis(ModelJob):
    task: str
    images: list[AnalysedImage]
    facts: dict[str, Any]  # in the plain form of shared.formats.facts
    result: dict[str, Any] | None  # its keys are those of rules.ANALYSIS_KEYS

    def inputs(self) -> list[InputPicture]:
        return [
            InputPicture(image["view"] or f"picture {number}", UUID(image["asset_id"]))
            for number, image in enumerate(self.images, start=1)
        ]


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
    )
    if row.result is not None:
        analysis.result.CopyFrom(protos.struct(row.result))
    return analysis


KIND = JobKind("analysis", job_pb2.JOB_KIND_ANALYSIS, ANALYSES, pb.Analysis, to_proto)
