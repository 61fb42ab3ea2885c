"""The worker's side: fetch what goes in, let the provider work, keep what comes out.

Everything that is asked of `assets` has a request id made of the row and the step, so that a try after a crash finds
what the try before had already done: the same references, and with the same bytes the same result asset. The input's
references are acquired here and not while the call is served: the row must be committed first, since nobody would
release what a crash between the two leaves held. A picture deleted in between makes the job fail, at no cost.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2
from psycopg.types.json import Jsonb

from services.conversions import rules
from services.conversions.jobs import Noun
from services.conversions.providers import Picture, Provider, ProviderFailed, Reading
from shared import attempts, auth, calls, states
from shared.calls import Peers
from shared.db import Database
from shared.errors import DomainError, Reason

_PROMPT_KEPT = 8000  # of a prompt, in the asset's provenance; the row has all of it

# Refusals of `assets` that another try may not meet, and the class that they are recorded with.
_PASSING: Mapping[int, str] = {
    Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE: rules.UNAVAILABLE,
    Reason.ERROR_REASON_SHUTTING_DOWN: rules.UNAVAILABLE,
    Reason.ERROR_REASON_OVERLOADED: rules.RATE_LIMITED,
    Reason.ERROR_REASON_REQUEST_IN_PROGRESS: rules.UNAVAILABLE,
    Reason.ERROR_REASON_STORAGE_FULL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_INTERNAL: rules.UNAVAILABLE,
    Reason.ERROR_REASON_DEADLINE: rules.TIMED_OUT,
}


@dataclass(frozen=True)
class Input:
    """A picture that goes in. `path` is its original's bytes."""

    role: str
    asset_id: str
    sha256: str
    path: Path


class Making:
    """One try at one row. `directory` is its own and goes when it ends."""

    def __init__(self, db: Database, peers: Peers, provider: Provider, noun: Noun, attempt: attempts.Attempt) -> None:
        self.row = attempt.row
        self.provider = provider
        self.directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        self._db = db
        self._peers = peers
        self._noun = noun
        self._attempt = attempt
        self._name = f"conversions/{noun.table}/{attempt.row.id}"
        self._inputs: list[Input] = []
        self._started = time.monotonic()
        attempt.model = f"{provider.name} {provider.version}"

    async def fetch(self, wanted: Sequence[tuple[str, UUID]]) -> list[Input]:
        """Holds and downloads (role, asset) pairs; the files come in the same order."""
        if wanted:
            await self._hold([asset_id for _, asset_id in wanted], "inputs")
        heads = []
        for number, (role, asset_id) in enumerate(wanted):
            path = self.directory / f"input-{number}"
            head = await self._peers.download(str(asset_id), path)
            self._inputs.append(Input(role, str(asset_id), head.sha256, path))
            self._attempt.input_bytes += head.size_bytes
            heads.append(head)
        await self._progress(0.2)
        return self._inputs

    async def keep(
        self, picture: Picture, *, kind: asset_pb2.AssetKind, prompt: str, file_name: str, scope: Mapping[str, str],
        price: int, format: str = "jpeg", **columns: Any,
    ) -> attempts.Outcome:  # fmt: skip
        """Stores the picture as an asset. The outcome completes the row with it, at `price` credits."""
        await self._progress(0.8)
        declaration = upload_pb2.UploadDeclaration(
            kind=kind, file_name=file_name, mime_type=rules.MIME_TYPES[format], scope=asset_pb2.AssetScope(**scope),
            provenance=asset_pb2.Provenance(
                model=self.provider.name, model_version=self.provider.version, prompt=prompt[:_PROMPT_KEPT],
                source_asset_ids=list(dict.fromkeys(item.asset_id for item in self._inputs)),
            ),
        )  # fmt: skip
        size = picture.path.stat().st_size
        asset = await self._peers.upload(declaration, picture.path, request_id=f"{self._name}/result")
        await self._hold([UUID(asset.id)], "result")
        columns["result_asset_id"] = UUID(asset.id)
        return self._outcome(picture, picture.parameters, picture.seed, price, size, columns)

    def conclude(self, reading: Reading, *, parameters: Mapping[str, Any], price: int) -> attempts.Outcome:
        """The outcome that completes the row with what was found."""
        size = len(json.dumps(reading.result))
        return self._outcome(reading, parameters, None, price, size, {"result": Jsonb(reading.result)})

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _outcome(
        self, made: Picture | Reading, parameters: Mapping[str, Any], seed: int | None, price: int, size: int,
        columns: dict[str, Any],
    ) -> attempts.Outcome:  # fmt: skip
        recipe = {
            "model": self.provider.name, "model_version": self.provider.version, "seed": seed,
            "parameters": parameters,
            "inputs": [{"role": i.role, "asset_id": i.asset_id, "sha256": i.sha256} for i in self._inputs],
        }  # fmt: skip
        taken = round((time.monotonic() - self._started) * 1000)
        shown = {
            "recipe": Jsonb(recipe), "evidence": Jsonb(made.evidence), "confidence": made.confidence,
            "credits": price, "progress": 1.0, "processing_time_ms": taken, **columns,
        }  # fmt: skip
        return attempts.Outcome(shown, output_bytes=size, credits=price)

    async def _hold(self, asset_ids: Sequence[UUID], step: str) -> None:
        stub = self._peers.stub(asset_pb2_grpc.AssetServiceStub)
        await stub.AcquireReferences(
            asset_pb2.AcquireReferencesRequest(
                request_id=f"{self._name}/{step}", holder=self._name, asset_ids=[str(each) for each in asset_ids]
            )
        )

    async def _progress(self, fraction: float) -> None:
        """Tells watchers how far it is. Raises Superseded if another try has the row by now."""
        async with self._db.transaction(self.row.owner) as m:
            row = await states.advance(
                m, rules.JOB_STATES, self._noun.table, self.row.id, "processing", token=self._attempt.token,
                progress=fraction,
            )  # fmt: skip
            if row is None:
                raise attempts.Superseded
            await self._noun.publish(m, row)


Make = Callable[[Making], Awaitable[attempts.Outcome]]


class Workshop:
    """Runs the jobs of the three nouns."""

    def __init__(self, db: Database, peers: Peers, provider: Provider) -> None:
        self._db = db
        self._peers = peers
        self._provider = provider

    async def run(self, noun: Noun, make: Make, row_id: str) -> None:
        kind = attempts.Kind(
            noun.table, rules.JOB_STATES, "processing", "completed", noun.publish, max_attempts=rules.MAX_ATTEMPTS
        )

        async def work(attempt: attempts.Attempt) -> attempts.Outcome:
            auth.enter(calls.owner_identity(attempt.row.owner))
            making = Making(self._db, self._peers, self._provider, noun, attempt)
            try:
                return await make(making)
            except ProviderFailed as failure:
                final = failure.error_class in rules.FINAL_ERRORS
                raise attempts.JobFailed(failure.error_class, failure.message, final=final) from None
            except DomainError as refusal:
                error_class = _PASSING.get(refusal.reason, rules.BAD_INPUT)
                final = error_class in rules.FINAL_ERRORS
                raise attempts.JobFailed(error_class, refusal.text, final=final) from None
            finally:
                await asyncio.to_thread(making.clear)

        await attempts.run(self._db, kind, row_id, work)
