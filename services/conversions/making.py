"""The worker's side: fetch what goes in, let the provider work, keep what comes out.

What is asked of `assets` can be asked again, so that a try after a crash finds what the try before
had already done: the same references under the row's name, and with the same bytes the same result
asset. The inputs' references are acquired here and not while the call is served: the row must be
committed first, since nobody would release what a crash between the two leaves held. A picture
deleted in between makes the job fail, at no cost. A row that fails or is cancelled gives them back,
by a job that is committed with its end and removes what was made, too; a completed one keeps them.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import structlog
from atelier.assets.v1 import asset_pb2, upload_pb2
from psycopg.types.json import Jsonb

from services.conversions import inputs, rules
from services.conversions.jobs import Noun
from services.conversions.providers import Picture, Provider, ProviderFailed, Reading
from shared.background import attempts
from shared.background.jobs import JobQueue, TryAgain
from shared.database import states
from shared.database.db import Database, Mutation
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_log = structlog.get_logger("making")

_PROMPT_KEPT = 8000  # of a prompt, in the asset's provenance; the row has all of it
_AGAIN_SECONDS = 10.0  # until the next try to give pictures back while assets is away
# A hold that was under way when the row came to its end may succeed after it, so that pictures are
# given back twice.
_LATE_SECONDS = 2 * inputs.HOLD_SECONDS
_ENDED: LiteralString = """
    SELECT owner, to_jsonb({table}) ->> 'result_asset_id' AS made,
        updated_at + make_interval(secs => %(late)s) AS late_at,
        updated_at + make_interval(secs => %(late)s) <= now() AS settled,
        now() + make_interval(secs => %(again)s) AS again_at
    FROM {table} WHERE id = %(id)s AND state IN ('failed', 'cancelled')
"""


@dataclass(frozen=True)
class Input:
    """A picture that goes in. `path` is its original's bytes."""

    role: str
    asset_id: str
    sha256: str
    path: Path


class Making:
    """One try at one row. `directory` is its own and goes when it ends."""

    def __init__(
        self, db: Database, peers: Peers, provider: Provider, noun: Noun, attempt: attempts.Attempt
    ) -> None:
        self.row = attempt.row
        self.provider = provider
        self.directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        self._db = db
        self._peers = peers
        self._noun = noun
        self._attempt = attempt
        self._name = noun.holder(attempt.row.id)
        self._inputs: list[Input] = []
        attempt.model = f"{provider.name} {provider.version}"

    async def fetch(self) -> list[Input]:
        """Holds and downloads the row's pictures; the files come in the noun's order."""
        wanted = self._noun.inputs(self.row)
        ids = [asset_id for _, asset_id in wanted]
        await inputs.hold(self._peers, self._name, ids, conversion_id=str(self.row.id))
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
        self,
        picture: Picture,
        *,
        kind: asset_pb2.AssetKind,
        prompt: str,
        file_name: str,
        scope: Mapping[str, str],
        price: int,
        format: str = "jpeg",
        **columns: Any,
    ) -> attempts.Outcome:
        """Stores the picture as an asset. The outcome completes the row with it, at `price`
        credits."""
        await self._progress(0.8)
        declaration = upload_pb2.UploadDeclaration(
            kind=kind,
            file_name=file_name,
            mime_type=rules.MIME_TYPES[format],
            scope=asset_pb2.AssetScope(**scope),
            provenance=asset_pb2.Provenance(
                model=self.provider.name,
                model_version=self.provider.version,
                prompt=prompt[:_PROMPT_KEPT],
                source_asset_ids=list(dict.fromkeys(item.asset_id for item in self._inputs)),
                digital_source_type=picture.source_type,
            ),
        )
        size = picture.path.stat().st_size
        asset = await self._peers.upload(
            declaration, picture.path, request_id=f"{self._name}/result"
        )
        await self._progress(
            0.9, result_asset_id=UUID(asset.id)
        )  # so that it goes if the row fails from here on
        await inputs.hold(self._peers, self._name, [asset.id])
        columns["result_asset_id"] = UUID(asset.id)
        return self._outcome(picture, picture.parameters, picture.seed, price, size, columns)

    def conclude(
        self, reading: Reading, *, parameters: Mapping[str, Any], price: int
    ) -> attempts.Outcome:
        """The outcome that completes the row with what was found."""
        size = len(json.dumps(reading.result))
        return self._outcome(
            reading, parameters, None, price, size, {"result": Jsonb(reading.result)}
        )

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _outcome(
        self,
        made: Picture | Reading,
        parameters: Mapping[str, Any],
        seed: int | None,
        price: int,
        size: int,
        columns: dict[str, Any],
    ) -> attempts.Outcome:
        recipe = {
            "model": self.provider.name,
            "model_version": self.provider.version,
            "seed": seed,
            "parameters": parameters,
            "inputs": [
                {"role": i.role, "asset_id": i.asset_id, "sha256": i.sha256} for i in self._inputs
            ],
        }
        shown = {
            "recipe": Jsonb(recipe),
            "evidence": Jsonb(made.evidence),
            "confidence": made.confidence,
            "credits": price,
            "progress": 1.0,
            **columns,
        }
        return attempts.Outcome(shown, output_bytes=size, credits=price)

    async def _progress(self, fraction: float, **columns: Any) -> None:
        """Tells watchers how far it is. Raises Superseded if another try has the row by now."""
        async with self._db.transaction(self.row.owner) as m:
            row = await states.advance(
                m,
                rules.JOB_STATES,
                self._noun.table,
                self.row.id,
                "processing",
                token=self._attempt.token,
                progress=fraction,
                **columns,
            )
            if row is None:
                raise attempts.Superseded
            await self._noun.publish(m, row)


Make = Callable[[Making], Awaitable[attempts.Outcome]]


class Workshop:
    """Runs the jobs of the three nouns."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers, provider: Provider) -> None:
        self._db = db
        self._queue = queue
        self._peers = peers
        self._provider = provider

    async def run(self, noun: Noun, make: Make, row_id: str) -> None:
        async def tell(m: Mutation, row: Any) -> None:
            await noun.tell(m, self._queue, row)

        kind = attempts.Kind(
            noun.table,
            rules.JOB_STATES,
            "processing",
            "completed",
            tell,
            max_attempts=rules.MAX_ATTEMPTS,
        )

        async def work(attempt: attempts.Attempt) -> attempts.Outcome:
            making = Making(self._db, self._peers, self._provider, noun, attempt)
            try:
                return await make(making)
            except ProviderFailed as failure:
                if failure.error_class in rules.PASSING_ERRORS:
                    raise attempts.Waits(
                        self._provider.name, failure.error_class, failure.message
                    ) from None
                final = failure.error_class in rules.FINAL_ERRORS
                raise attempts.JobFailed(
                    failure.error_class, failure.message, final=final
                ) from None
            except DomainError as refusal:
                raise inputs.verdict(refusal) from None
            finally:
                await asyncio.to_thread(making.clear)

        await attempts.run(self._db, kind, row_id, work)

    async def release(self, noun: Noun, row_id: str) -> None:
        """Gives back the pictures of a row that failed or was cancelled, and removes the one that
        it had made."""
        values: dict[str, Any] = {
            "id": UUID(row_id),
            "late": _LATE_SECONDS,
            "again": _AGAIN_SECONDS,
        }
        rows = await self._db.system_rows(_ENDED.format(table=noun.table), values)
        if not rows:
            return
        [row] = rows
        auth.enter(calls.owner_identity(row.owner))
        try:
            await inputs.release(self._peers, noun.holder(values["id"]))
            if row.made:
                await inputs.remove(self._peers, row.made)
        except DomainError as refusal:
            _log.warning("pictures wait to be given back", row=row_id, reason=refusal.text)
            raise TryAgain(row.again_at) from None
        if not row.settled:
            raise TryAgain(row.late_at)
