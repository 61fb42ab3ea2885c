"""Conversions, which are try-ons: the row class, its message and its kind of job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.conversions.v1 import conversion_pb2 as pb
from atelier.conversions.v1 import job_pb2

from services.conversions import rules
from services.conversions.job_rows import InputPicture, JobKind, PictureJob, picture_fields
from services.conversions.prices import Priced
from shared.database.rows import Table
from shared.rpc import protos


@dataclass(slots=True)
class Conversion(PictureJob):
    user_asset_id: UUID
    cloth_asset_id: UUID
    style_name: str
    metadata: dict[str, Any]  # JSON from the caller
    free: bool

    @property
    def model_task(self) -> str:
        return rules.CONVERSION_TASK

    def inputs(self) -> list[InputPicture]:
        return [
            InputPicture("user", self.user_asset_id),
            InputPicture("cloth", self.cloth_asset_id),
        ]


CONVERSIONS = Table("conversions", Conversion)


def to_proto(row: Conversion) -> pb.Conversion:
    conversion = pb.Conversion(
        **picture_fields(row),
        user_asset_id=str(row.user_asset_id),
        cloth_asset_id=str(row.cloth_asset_id),
        style_name=row.style_name,
        free=row.free,
        consent_id=str(row.consent_ids[0]) if row.consent_ids else "",
    )
    if row.metadata:
        conversion.metadata.CopyFrom(protos.struct(row.metadata))
    return conversion


def _priced(_columns: Mapping[str, Any]) -> Priced:
    return Priced("conversion", references=2)


KIND = JobKind(
    "conversion",
    job_pb2.JOB_KIND_CONVERSION,
    CONVERSIONS,
    pb.Conversion,
    to_proto,
    _priced,
    pb.PurgedConversion,
)
