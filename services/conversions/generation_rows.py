"""Generations, which are pictures from a prompt or a photograph: the row class, its message and its
kind of job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import generation_pb2 as pb
from atelier.conversions.v1 import job_pb2

from services.conversions.job_rows import InputPicture, JobKind, PictureJob, picture_fields
from services.conversions.prices import Priced
from shared.database.rows import Table
from shared.rpc import views
from shared.rpc.protos import EnumNames

TASKS = EnumNames(pb.GenerationTask, "GENERATION_TASK_")


@dataclass(slots=True)
class Generation(PictureJob):
    task: str
    prompt: str
    full_prompt: str
    style: str
    aspect_ratio: str
    quality: str
    format: str
    resolution: str
    seed: int | None
    reference_asset_ids: list[UUID]
    unique_visual_elements: list[str]
    source_asset_id: UUID | None
    view: str
    at_x: float | None
    at_y: float | None
    name: str
    dataset_id: str
    regenerated_from: UUID | None
    brand: str
    vibe: str
    logo_asset_id: UUID | None
    dataset_name: str

    @property
    def at(self) -> tuple[float, float] | None:
        """Returns the place of a close-up, in fractions of the source."""
        return None if self.at_x is None or self.at_y is None else (self.at_x, self.at_y)

    @property
    def model_task(self) -> str:
        return f"generation.{self.task}"

    def inputs(self) -> list[InputPicture]:
        references = [InputPicture("reference", each) for each in self.reference_asset_ids]
        others = [("logo", self.logo_asset_id), ("source", self.source_asset_id)]
        return [*references, *(InputPicture(role, each) for role, each in others if each)]

    def result_columns(self) -> dict[str, object]:
        return {
            "result_asset_id": self.result_asset_id,
            "full_prompt": self.full_prompt,
            "unique_visual_elements": self.unique_visual_elements,
        }


GENERATIONS = Table("generations", Generation)


def to_proto(row: Generation) -> pb.Generation:
    at = row.at
    return pb.Generation(
        **picture_fields(row),
        task=TASKS.number[row.task],
        prompt=row.prompt,
        full_prompt=row.full_prompt,
        prompt_used=row.full_prompt,
        style=row.style,
        aspect_ratio=row.aspect_ratio,
        quality=row.quality,
        format=row.format,
        resolution=row.resolution,
        seed=row.seed,
        reference_asset_ids=[str(each) for each in row.reference_asset_ids],
        reference_images_count=len(row.reference_asset_ids),
        unique_visual_elements=row.unique_visual_elements,
        source_asset_id=str(row.source_asset_id or ""),
        view=row.view,
        view_type=views.type_of(row.view),
        at=None if at is None else facts_pb2.Point(x=at[0], y=at[1]),
        name=row.name,
        caption=row.prompt or row.name,
        dataset_id=row.dataset_id,
        regenerated_from=str(row.regenerated_from or ""),
        brand=row.brand,
        vibe=row.vibe,
        logo_asset_id=str(row.logo_asset_id or ""),
        dataset_name=row.dataset_name,
        consent_ids=[str(each) for each in row.consent_ids],
    )


def _priced(columns: Mapping[str, Any]) -> Priced:
    sources = (columns["source_asset_id"], columns["logo_asset_id"])
    return Priced(
        "generation",
        columns["task"],
        columns["resolution"],
        columns["quality"],
        len(columns["reference_asset_ids"]) + sum(each is not None for each in sources),
    )


KIND = JobKind(
    "generation",
    job_pb2.JOB_KIND_GENERATION,
    GENERATIONS,
    pb.Generation,
    to_proto,
    _priced,
    pb.PurgedGeneration,
)
