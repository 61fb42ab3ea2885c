"""Jobs: what the rows and messages of conversions, generations and analyses have in common.

Each row of the three tables is a job: it is created, waits, runs and ends. A `JobKind` describes
one of the three tables, for code that serves all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2
from atelier.conversions.v1 import job_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg.types.json import Jsonb

from services.conversions import rules
from services.conversions.prices import Priced
from services.conversions.rules import Evidence
from shared.background import events
from shared.background.leases import LeasedRow
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.protos import EnumNames, struct, timestamp, wait_of

STATES = EnumNames(pb.JobState, "JOB_STATE_")


class Ending(Protocol):
    """A row that may have ended."""

    @property
    def state(self) -> str: ...
    @property
    def ended_at(self) -> datetime | None: ...
    @property
    def updated_at(self) -> datetime: ...


def end_of(row: Ending) -> datetime | None:
    """Returns when a job ended; None before. The last change of a row that ended before its end was
    noted is its end."""
    return row.ended_at or row.updated_at if row.state in rules.FINISHED else None


class InputPicture(NamedTuple):
    """An input picture of a job. `role`: its use, such as `user`."""

    role: str
    asset_id: UUID


@dataclass(slots=True)
class ModelJob(LeasedRow, ABC):
    """The columns of every table of jobs that a model runs."""

    created_by: str
    product_id: str
    progress: float
    confidence: float
    evidence: list[Evidence]
    recipe: Mapping[str, Any] | None  # as `recipe()` makes it
    credits: int
    credits_reserved: int
    max_credits: int | None
    processing_time_ms: int
    priority: int
    created_at: datetime
    provider: str  # the provider that the caller asked for; empty: none in particular
    recipe_digest: str
    answered_from: UUID | None
    retry_of: UUID | None
    consent_ids: list[UUID]
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None  # `end` has it of rows from before, too
    kept_from: datetime | None
    drop_inputs: bool
    inputs_dropped_at: datetime | None
    requeued_at: datetime | None
    requeued_after: int  # attempts that it had had then

    @property
    def finished(self) -> bool:
        return self.state in rules.FINISHED

    @property
    def end(self) -> datetime | None:
        """Returns when the job ended; None before."""
        return end_of(self)

    @property
    @abstractmethod
    def model_task(self) -> str:
        """Returns what the model is asked for, one of rules.TASKS."""

    @abstractmethod
    def inputs(self) -> list[InputPicture]:
        """Returns the pictures that go into the model, in the order in which it takes them."""

    @abstractmethod
    def result_columns(self) -> dict[str, object]:
        """Returns the columns that hold what the model made, which only this kind has."""


@dataclass(slots=True)
class PictureJob(ModelJob):
    """A job whose result is a picture."""

    result_asset_id: UUID | None
    batch_id: UUID | None
    batch_item: int | None  # the number of the batch's item; None once another row tries it again

    @property
    def shown_result(self) -> str:
        """Returns the picture of a COMPLETED row, else ''. A row that is still processing may have
        one."""
        return str(self.result_asset_id) if self.state == "completed" else ""

    def result_columns(self) -> dict[str, object]:
        return {"result_asset_id": self.result_asset_id}


JobMessage = conversion_pb2.Conversion | generation_pb2.Generation | analysis_pb2.Analysis
PurgedMessage = (
    conversion_pb2.PurgedConversion | generation_pb2.PurgedGeneration | analysis_pb2.PurgedAnalysis
)
J = TypeVar("J", bound=ModelJob)
M = TypeVar("M", bound=JobMessage)


@dataclass(frozen=True)
class JobKind(Generic[J, M]):
    """One of the three kinds. `name`: the subject of its events and its field in answers.
    `to_proto`: makes a row's message, without URLs. `purged_message`: tells that a row is gone."""

    name: str
    number: pb.JobKind
    table: Table[J]
    message: type[M]
    to_proto: Callable[[J], M]
    priced: Callable[[Mapping[str, Any]], Priced]
    purged_message: type[PurgedMessage]

    @property
    def release_task(self) -> str:
        return f"release_{self.table.name}"

    @property
    def settle_task(self) -> str:
        return f"settle_{self.table.name}"

    @property
    def purged_subject(self) -> str:
        return f"purged_{self.name}"

    def purged(self, row_id: str, at: Timestamp | None) -> PurgedMessage:
        """Returns the message that a row is gone."""
        fields: dict[str, Any] = {f"{self.name}_id": row_id, "purge_time": at}
        return self.purged_message(**fields)

    def holder(self, row_id: UUID) -> str:
        """Returns the holder of a row's references to its pictures, which also begins the row's
        request id at assets."""
        return f"conversions/{self.table.name}/{row_id}"

    async def publish(self, m: Mutation, row: J) -> None:
        await events.publish(m, self.name, row.id, row.version, self.to_proto(row))

    async def get(self, db: Database, text: str) -> J:
        """Returns the owner's row. Raises NOT_FOUND if there is none."""
        row = await self.find(db, text)
        if row is None:
            raise errors.not_found(self.name, text)
        return row

    async def find(self, db: Database, text: str) -> J | None:
        return await db.first(_select(self.table), {"id": parse_id(text, f"{self.name}_id")})


@cache
def _select(table: Table[J]) -> Statement[J]:
    row = table.core.c
    return compiled(table.row, sa.select(table.core).where(row.id == sa.bindparam("id")))


def common_fields(row: ModelJob) -> dict[str, Any]:
    """Returns the fields that the three messages share, by name."""
    return {
        "id": str(row.id),
        "owner": row.owner,
        "created_by": row.created_by,
        "state": STATES.number[row.state],
        "product_id": row.product_id,
        "progress": row.progress,
        "cancel_requested": row.cancel_requested,
        "confidence": row.confidence,
        "evidence": [pb.Evidence(**item) for item in row.evidence],
        "recipe": recipe_message(row.recipe) if row.recipe else None,
        "credits": row.credits,
        "credits_reserved": row.credits_reserved,
        "max_credits": row.max_credits,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "processing_time_ms": row.processing_time_ms,
        "create_time": timestamp(row.created_at),
        "wait": wait_of(row),
        "update_time": timestamp(row.updated_at),
        "priority": row.priority,
        "run_externally": row.external,
        "provider": row.provider,
        "answered_from": str(row.answered_from or ""),
        "retry_of": str(row.retry_of or ""),
        "archive_time": timestamp(row.archived_at),
        "delete_time": timestamp(row.deleted_at),
        "expire_time": timestamp(row.expires_at),
        "inputs": pb.InputRetention(drop=True, drop_time=timestamp(row.inputs_dropped_at))
        if row.drop_inputs
        else None,
    }


def picture_fields(row: PictureJob) -> dict[str, Any]:
    """Returns the fields that the messages of pictures share, by name."""
    return {
        **common_fields(row),
        "result_asset_id": row.shown_result,
        "batch_id": str(row.batch_id or ""),
        "batch_item": row.batch_item,
    }


class RecipeInput(TypedDict):
    role: str
    asset_id: str
    sha256: str


def recipe(
    *,
    model: str,
    model_version: str,
    provider: str = "",
    seed: int | None,
    parameters: Mapping[str, Any],
    inputs: Sequence[RecipeInput],
) -> Jsonb:
    """Returns the value of the column `recipe`."""
    return Jsonb(
        {
            "model": model,
            "model_version": model_version,
            "provider": provider,
            "seed": seed,
            "parameters": parameters,
            "inputs": inputs,
        }
    )


def recipe_message(stored: Mapping[str, Any]) -> pb.Recipe:
    return pb.Recipe(
        model=stored["model"],
        model_version=stored["model_version"],
        provider=stored.get("provider", ""),
        seed=stored["seed"],
        parameters=struct(stored["parameters"]),
        inputs=[pb.RecipeInput(**item) for item in stored["inputs"]],
    )
