"""Conversions, which are try-ons: the row class, its message and its kind of job."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.conversions.v1 import conversion_pb2 as pb
from atelier.conversions.v1 import job_pb2

from services.conversions.job_rows import InputPicture, JobKind, PictureJob, common_fields
from shared.database.rows import Table
from shared.rpc import protos


@dataclass(slots=True)
class Conversion(PictureJob):
    user_asset_id: UUID
    cloth_asset_id: UUID
    style_name: str
    metadata: dict[str, Any]  # JSON from the caller
    free: bool

    def inputs(self) -> list[InputPicture]:
        return [
            InputPicture("user", self.user_asset_id),
            InputPicture("cloth", self.cloth_asset_id),
        ]


CONVERSIONS = Table("conversions", Conversion)


def to_proto(row: Conversion) -> pb.Conversion:
    conversion = pb.Conversion(
        **common_fields(row),
        user_asset_id=str(row.user_asset_id),
        cloth_asset_id=str(row.cloth_asset_id),
        result_asset_id=row.shown_result,
        style_name=row.style_name,
        free=row.free,
    )
    if row.metadata:
        conversion.metadata.CopyFrom(protos.struct(row.metadata))
    return conversion


KIND = JobKind("conversion", job_pb2.JOB_KIND_CONVERSION, CONVERSIONS, pb.Conversion, to_proto)
