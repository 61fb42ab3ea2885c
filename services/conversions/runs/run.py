"""Runs one attempt of a job: what every kind of job does around the work of its provider.

Calls to `assets` can be repeated, so that an attempt after a crash finds what the attempt before
had already done: the same references under the row's holder, and for the same bytes the same result
asset. References to the inputs are acquired here and not while the call is served: the row must be
committed first, since nobody would release references that a crash between the two leaves behind.
If a picture is deleted in between, the job fails, at no cost.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import UUID

from atelier.assets.v1 import asset_pb2, upload_pb2
from psycopg.types.json import Jsonb

from services.conversions import assets, job_rows, rules
from services.conversions.job_rows import J, JobKind
from services.conversions.providers.contract import AnalysisResult, Picture, Provider
from shared.background import attempts
from shared.database import states
from shared.database.db import Database
from shared.rpc.calls import Peers

_PROMPT_KEPT = 8000  # characters of a prompt in the asset's provenance; the row has all of it

# Covariant: code for a provider of one protocol also takes a provider of several.
P = TypeVar("P", bound=Provider, covariant=True)


@dataclass(frozen=True)
class Input:
    """An input picture. `path` has the bytes of its original."""

    role: str
    asset_id: str
    sha256: str
    path: Path


@dataclass(frozen=True)
class StoredAs:
    """How the picture that was made is declared to assets."""

    kind: asset_pb2.AssetKind
    file_name: str
    prompt: str
    scope: asset_pb2.AssetScope
    format: str = "jpeg"


class Run(Generic[J, P]):
    """One attempt of the job of `row`, by `provider`. `directory` belongs to the attempt; `clear`
    deletes it."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        kind: JobKind[J, Any],
        provider: P,
        attempt: attempts.Attempt[J],
    ) -> None:
        self.row: J = attempt.row
        self.directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        self._db = db
        self._peers = peers
        self._kind = kind
        self._provider = provider
        self._attempt = attempt
        self._holder = kind.holder(attempt.row.id)
        self._inputs: list[Input] = []
        attempt.model = f"{provider.name} {provider.version}"

    @property
    def provider(self) -> P:
        return self._provider

    async def fetch_inputs(self) -> list[Input]:
        """Acquires references to the row's pictures, downloads them, and returns them in the order
        of `ModelJob.inputs`."""
        wanted = self.row.inputs()
        ids = [each.asset_id for each in wanted]
        await assets.acquire(self._peers, self._holder, ids, conversion_id=str(self.row.id))
        for number, (role, asset_id) in enumerate(wanted):
            path = self.directory / f"input-{number}"
            head = await self._peers.download(str(asset_id), path)
            self._inputs.append(Input(role, str(asset_id), head.sha256, path))
            self._attempt.input_bytes += head.size_bytes
        await self._progress(0.2)
        return self._inputs

    async def store(
        self, picture: Picture, declared: StoredAs, *, price: int, **columns: object
    ) -> attempts.Outcome[J]:
        """Stores the picture as an asset. Returns the outcome that completes the row with it and
        `columns`, at `price` credits."""
        await self._progress(0.8)
        size = picture.path.stat().st_size
        asset = await self._peers.upload(
            self._declaration(picture, declared),
            picture.path,
            request_id=f"{self._holder}/result",
        )
        asset_id = UUID(asset.id)
        # The row names the picture from here on, so that it is purged if the row fails.
        await self._progress(0.9, result_asset_id=asset_id)
        await assets.acquire(self._peers, self._holder, [asset_id])
        return attempts.Outcome(
            {
                **self._completed(picture, picture.parameters, picture.seed, price),
                **columns,
                "result_asset_id": asset_id,
            },
            output_bytes=size,
            credits=price,
        )

    def conclude(
        self, found: AnalysisResult, *, parameters: Mapping[str, Any], price: int
    ) -> attempts.Outcome[J]:
        """Returns the outcome that completes the row with what was found, at `price` credits."""
        return attempts.Outcome(
            {
                **self._completed(found, parameters, None, price),
                "result": Jsonb(found.result),
            },
            output_bytes=len(json.dumps(found.result)),
            credits=price,
        )

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _declaration(self, picture: Picture, declared: StoredAs) -> upload_pb2.UploadDeclaration:
        return upload_pb2.UploadDeclaration(
            kind=declared.kind,
            file_name=declared.file_name,
            mime_type=rules.MIME_TYPES[declared.format],
            scope=declared.scope,
            provenance=asset_pb2.Provenance(
                model=self.provider.name,
                model_version=self.provider.version,
                prompt=declared.prompt[:_PROMPT_KEPT],
                source_asset_ids=list(dict.fromkeys(item.asset_id for item in self._inputs)),
                digital_source_type=picture.source_type,
            ),
        )

    def _completed(
        self,
        made: Picture | AnalysisResult,
        parameters: Mapping[str, Any],
        seed: int | None,
        price: int,
    ) -> dict[str, object]:
        """Returns the columns of a completed row that every kind has."""
        recipe = job_rows.recipe(
            model=self.provider.name,
            model_version=self.provider.version,
            seed=seed,
            parameters=parameters,
            inputs=[
                {"role": item.role, "asset_id": item.asset_id, "sha256": item.sha256}
                for item in self._inputs
            ],
        )
        return {
            "recipe": recipe,
            "evidence": Jsonb(made.evidence),
            "confidence": made.confidence,
            "credits": price,
            "progress": 1.0,
        }

    async def _progress(self, fraction: float, **columns: Any) -> None:
        """Publishes the job's progress. Raises Superseded if another attempt has the row by now."""
        async with self._db.transaction(self.row.owner) as m:
            row = await states.advance(
                m,
                rules.JOB_STATES,
                self._kind.table,
                self.row.id,
                "processing",
                token=self._attempt.token,
                progress=fraction,
                **columns,
            )
            if row is None:
                raise attempts.Superseded
            await self._kind.publish(m, row)
