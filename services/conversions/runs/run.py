"""Runs one attempt of a job: what every kind of job does around the work of a provider.

Calls to `assets` can be repeated, so that an attempt after a crash finds what the attempt before
had already done: the same references under the row's holder, and for the same bytes the same result
asset. References to the inputs are acquired here and not while the call is served: the row must be
committed first, since nobody would release references that a crash between the two leaves behind.
If a picture is deleted in between, the job fails, at no cost.
"""

import asyncio
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic
from uuid import UUID

from atelier.assets.v1 import asset_pb2, upload_pb2
from psycopg.types.json import Jsonb

from services.conversions import assets, job_rows, rules, trash_rows
from services.conversions.consenting import Consents
from services.conversions.job_rows import J, JobKind
from services.conversions.provider_rows import ProviderCall
from services.conversions.providers.contract import (
    AnalysisRequest,
    Found,
    InputPicture,
    Measurer,
    Model,
    ModerationRequest,
    Picture,
    PictureRequest,
)
from services.conversions.providers.routes import Candidate
from services.conversions.rules import Evidence, FindingRow
from services.conversions.runs.asking import A, Asked, Job, Providers, Work
from services.conversions.runs.marking import Marker, Source
from services.conversions.spending import CREDITS, Counted, Spending
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.database import states
from shared.database.db import Database, Mutation
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

# A result that was paid for is stored within these, or made again.
_INSIST_SECONDS, _PAUSE_SECONDS = 60.0, 2.0
_PROMPT_KEPT = 8000  # characters of a prompt in the asset's provenance; the row has all of it


@dataclass(frozen=True)
class Input:
    """An input picture. `path` has the bytes of its original."""

    role: str
    asset_id: str
    sha256: str
    path: Path
    mime_type: str


@dataclass(frozen=True)
class StoredAs:
    """How the picture that was made is declared to assets."""

    kind: asset_pb2.AssetKind
    file_name: str
    prompt: str
    scope: asset_pb2.AssetScope
    format: str = "jpeg"


@dataclass(frozen=True)
class Concluded:
    """What an analysis comes to. `findings`: every value with its source, ready for JSON."""

    model: Model
    parameters: Mapping[str, Any]
    result: Mapping[str, Any]
    findings: Sequence[FindingRow]
    confidence: float
    evidence: Sequence[Evidence]


class Run(Generic[J]):
    """One attempt of the job of `row`. `local` measures, whichever provider does the work.
    `directory` belongs to the attempt; `clear` deletes it."""

    def __init__(
        self,
        db: Database,
        queue: JobQueue,
        peers: Peers,
        kind: JobKind[J, Any],
        providers: Providers,
        local: Measurer,
        attempt: attempts.Attempt[J],
        spending: Spending,
        marker: Marker | None = None,
    ) -> None:
        """`marker` None: pictures aren't signed."""
        self.row: J = attempt.row
        self.local = local
        self.directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        self._db = db
        self._queue = queue
        self._peers = peers
        self._kind = kind
        self._providers = providers
        self._judged = False
        self._asked: Asked[Any] | None = None  # Any: a Picture or Found; who made it counts here
        self._given_up: list[ProviderCall] = []
        self._attempt = attempt
        self._spending = spending
        self._marker = marker
        self._counted = Counted()
        self._credits = 0  # that the result costs
        self._holder = kind.holder(attempt.row.id)
        self._inputs: list[Input] = []
        self._pictures: Sequence[asset_pb2.Asset] = []
        self._consents = Consents(db)

    async def ask(self, work: Work[A], sends: ModerationRequest) -> A:
        """Returns what the first provider of the job's route makes that can. `sends`: what any of
        them is sent. Raises ProviderFailed."""

        async def progress(fraction: float) -> None:
            await self._progress(0.2 + 0.6 * fraction)

        def tries(model: str) -> None:
            self._attempt.model = model

        job = Job(
            self._kind.table.name,
            self.row,
            self._attempt.token,
            progress,
            tries,
            functools.partial(self._judge, sends),
            self._may_call,
            self._was_not_charged,
        )
        asked = await self._providers.ask(job, work)
        self._asked = asked
        model = asked.result.model
        self._attempt.model = f"{model.name} {model.version}".strip()
        return asked.result

    async def make(self, request: PictureRequest) -> Picture:
        """Returns the picture that the first provider of the job's route makes that can. Raises
        ProviderFailed; Waits, before anything is paid, if pictures can't be signed now."""
        if self._marker and self._providers.hosted:
            self._marker.check()
        sends = ModerationRequest(
            request.prompt, request.style, {}, request.pictures, request.directory
        )
        return await self.ask(lambda provider, call: provider.picture(request, call), sends)

    async def find(self, request: AnalysisRequest) -> Found:
        """Returns what the first provider of the job's route finds that can. Raises
        ProviderFailed."""
        sends = ModerationRequest("", "", request.facts, request.pictures, request.directory)
        return await self.ask(lambda provider, call: provider.analysis(request, call), sends)

    def pictures(self) -> list[InputPicture]:
        """Returns the inputs that were fetched, as a provider is given them."""
        return [InputPicture(each.role, each.path) for each in self._inputs]

    async def _judge(self, sends: ModerationRequest) -> None:
        """Has the moderations judge what the job sends, once. Raises ProviderFailed, and
        CONSENT_REQUIRED as `_may_call` does: a moderation is sent the pictures, too."""
        if self._judged or not self._providers.moderation:
            return
        await self._consents.check(self.row.model_task, self._pictures)
        await self._providers.moderation.judge(self.row.owner, sends)
        self._judged = True

    async def _may_call(self, candidate: Candidate, *, counted: bool) -> str:
        """Notes the price of a provider, and counts what a call to it costs, unless that was
        counted when an earlier attempt began it. Returns why a budget forbids the call, "" if none
        does. Raises CONSENT_REQUIRED if a consent expired or was revoked since the job was
        created."""
        await self._consents.check(self.row.model_task, self._pictures)
        price = self._spending.price(self._kind, self.row, *candidate)
        self._credits = self._spending.charge(self.row, price)
        self._counted = Counted()
        if not counted:
            self._counted = await self._spending.may_call(self._db, self.row, price)
        return self._counted.refusal

    async def _was_not_charged(self) -> None:
        """Takes back what `_may_call` counted for the call, once."""
        counted, self._counted = self._counted, Counted()
        await self._spending.correct(self._db, self.row, counted, 0)

    async def fetch_inputs(self) -> list[Input]:
        """Acquires references to the row's pictures, downloads them, and returns them in the order
        of `ModelJob.inputs`."""
        wanted = self.row.inputs()
        ids = [each.asset_id for each in wanted]
        self._pictures = await assets.acquire(
            self._peers, self._holder, ids, conversion_id=str(self.row.id)
        )
        for number, (role, asset_id) in enumerate(wanted):
            path = self.directory / f"input-{number}"
            head = await self._peers.download(str(asset_id), path)
            self._inputs.append(Input(role, str(asset_id), head.sha256, path, head.mime_type))
            self._attempt.input_bytes += head.size_bytes
        await self._progress(0.2)
        return self._inputs

    async def store(
        self, picture: Picture, declared: StoredAs, **columns: object
    ) -> attempts.Outcome[J]:
        """Stores the picture as an asset. Returns the outcome that completes the row with it and
        `columns`, at the provider's price."""
        path = await self._marked(picture, declared)
        return await self._insist(lambda: self._stored(path, picture, declared, columns))

    async def _stored(
        self, path: Path, picture: Picture, declared: StoredAs, columns: Mapping[str, object]
    ) -> attempts.Outcome[J]:
        await self._progress(0.8)
        size = path.stat().st_size
        asset_id = UUID((await self._upload(self._declaration(picture, declared), path)).id)
        try:
            await self._purge_earlier(asset_id)
            # The row names the picture from here on, so that it is purged if the row fails.
            await self._progress(0.9, result_asset_id=asset_id)
        except BaseException:
            await self._drop_unnamed(asset_id)
            raise
        await assets.acquire(self._peers, self._holder, [asset_id])
        return attempts.Outcome(
            {
                **self._completed(picture.model, picture.parameters, picture.seed),
                "evidence": Jsonb(picture.evidence),
                "confidence": picture.confidence,
                **columns,
                "result_asset_id": asset_id,
            },
            output_bytes=size,
            credits=self._credits,
            in_transaction=self._settle,
            after_commit=self._committed,
        )

    async def _insist(
        self, store: Callable[[], Awaitable[attempts.Outcome[J]]]
    ) -> attempts.Outcome[J]:
        """Repeats `store` for a while if it is in vain now and the result was paid for: without it
        the next attempt pays again. So it counts as a fault in the end, not as a wait."""
        deadline = time.monotonic() + _INSIST_SECONDS
        while True:
            try:
                return await store()
            except Exception as error:
                refusal = errors.passing(error)
                if refusal is None or self._asked is None or not self._asked.paid:
                    raise
                if time.monotonic() > deadline:
                    error_class = Reason.Name(refusal.reason).removeprefix("ERROR_REASON_")
                    raise attempts.JobFailed(error_class, refusal.text, final=False) from None
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _marked(self, picture: Picture, declared: StoredAs) -> Path:
        """Returns the file to be stored: signed, if a trained model made the picture."""
        if self._marker is None or picture.source_type not in rules.TRAINED_SOURCES:
            return picture.path
        inputs = [
            Source(each.role, each.path, each.mime_type, each.sha256) for each in self._inputs
        ]
        return await self._marker.signed(
            picture, rules.MIME_TYPES[declared.format], self.row.recipe_digest, inputs
        )

    async def _upload(
        self, declaration: upload_pb2.UploadDeclaration, path: Path
    ) -> asset_pb2.Asset:
        # The picture of an attempt before a requeue may be purged, so that the answer to its upload
        # is of no use.
        after = self.row.requeued_after
        request_id = f"{self._holder}/result/{after}" if after else f"{self._holder}/result"
        try:
            return await self._peers.upload(declaration, path, request_id=request_id)
        except DomainError as refusal:
            if refusal.reason != Reason.ERROR_REASON_REQUEST_ID_REUSED:
                raise
        # An attempt that died before the row named its picture had stored other bytes: two
        # signatures of one picture differ, and so do two pictures of one prompt.
        request_id = f"{request_id}/{self._attempt.token}"
        return await self._peers.upload(declaration, path, request_id=request_id)

    async def _drop_unnamed(self, asset_id: UUID) -> None:
        """Purges a picture that the row doesn't name, if no other attempt will: the job is gone, or
        is being cancelled."""
        row: J | None = await self._kind.find(self._db, str(self.row.id))
        if row is None or row.cancel_requested or row.finished:
            await assets.purge(self._peers, asset_id)

    async def _purge_earlier(self, asset_id: UUID) -> None:
        """Purges another picture that an attempt before a requeue made, if it is still there."""
        earlier = getattr(self.row, "result_asset_id", None)
        if self.row.requeued_after and earlier not in (None, asset_id):
            await assets.release(self._peers, self._holder, [earlier])
            await assets.purge(self._peers, earlier)

    def conclude(self, concluded: Concluded) -> attempts.Outcome[J]:
        """Returns the outcome that completes the row with what was found, at the provider's price.
        An answer that holds nothing costs nothing."""
        if not concluded.confidence:
            self._credits = 0
        return attempts.Outcome(
            {
                **self._completed(concluded.model, concluded.parameters, None),
                "evidence": Jsonb(concluded.evidence),
                "confidence": concluded.confidence,
                "result": Jsonb(concluded.result),
                "findings": Jsonb(concluded.findings),
            },
            output_bytes=len(json.dumps(concluded.result)),
            credits=self._credits,
            in_transaction=self._settle,
            after_commit=self._committed,
        )

    async def _settle(self, m: Mutation, row: J) -> None:
        if self._asked and self._asked.leaves_open:
            self._given_up = await self._providers.settle(m, row.id, self._asked.call)
        if row.drop_inputs:
            await trash_rows.enqueue(m, self._kind, self._queue, row.id)

    async def _committed(self) -> None:
        priced = self._spending.priced(self._kind, self.row)
        CREDITS.labels(priced.kind, priced.name).inc(self._credits)
        await self._providers.give_up(self._given_up)

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _declaration(self, picture: Picture, declared: StoredAs) -> upload_pb2.UploadDeclaration:
        return upload_pb2.UploadDeclaration(
            kind=declared.kind,
            file_name=declared.file_name,
            mime_type=rules.MIME_TYPES[declared.format],
            scope=declared.scope,
            provenance=asset_pb2.Provenance(
                model=picture.model.name,
                model_version=picture.model.version,
                prompt=declared.prompt[:_PROMPT_KEPT],
                source_asset_ids=list(dict.fromkeys(item.asset_id for item in self._inputs)),
                digital_source_type=picture.source_type,
            ),
        )

    def _completed(
        self,
        model: Model,
        parameters: Mapping[str, Any],
        seed: int | None,
    ) -> dict[str, object]:
        """Returns the columns of a completed row that every kind has."""
        recipe = job_rows.recipe(
            model=model.name,
            model_version=model.version,
            provider=self._asked.provider if self._asked else "",
            seed=seed,
            parameters=parameters,
            inputs=[
                {"role": item.role, "asset_id": item.asset_id, "sha256": item.sha256}
                for item in self._inputs
            ],
        )
        return {
            "recipe": recipe,
            "credits": self._credits,
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
