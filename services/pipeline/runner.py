"""Runs phases in a worker."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog
from atelier.assets.v1 import asset_pb2, variant_pb2, variant_pb2_grpc
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2

from services.pipeline import (
    price_book_rows,
    product_rows,
    progress,
    result_rows,
    review_rows,
    rules,
)
from services.pipeline.phase_rows import LockedPhase, Phase
from services.pipeline.product_rows import IMAGES, Product, ProductImage
from services.pipeline.progress import PhaseOutcome
from shared.background import attempts
from shared.background.attempts import Attempt, JobFailed, Outcome
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import auth
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import facts_message, plain

_log = structlog.get_logger("runner")

_WATCH_SECONDS = 25.0  # shorter than the life of a service's token
_FINAL = frozenset(
    {job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
)
_TASKS = {
    1: analysis_pb2.ANALYSIS_TASK_PRODUCT,
    3: analysis_pb2.ANALYSIS_TASK_SEO,
    4: analysis_pb2.ANALYSIS_TASK_LISTING,
}


@dataclass(slots=True)
class _Value:
    """The effective value of a phase."""

    phase: int
    value: dict[str, Any]  # JSON of a PhaseValue


_SELECT_IMAGES = Statement(
    ProductImage,
    f"""
    SELECT {IMAGES.columns} FROM product_images WHERE product_id = %(id)s
    ORDER BY is_primary DESC, position
""",
)
_SELECT_VALUES = Statement(_Value, "SELECT phase, value FROM results WHERE product_id = %(id)s")
_SELECT_STOP = Statement(bool, "SELECT cancel_requested FROM phases WHERE id = %(id)s")


@dataclass(frozen=True)
class PhaseInputs:
    """What is known about a product when a phase begins."""

    product: Product
    images: Sequence[ProductImage]  # primary first
    values: rules.ByPhase  # what earlier phases found
    said: rules.ByPhase  # what people said about it in reviews

    def facts(self) -> dict[str, Any]:
        return rules.facts_for(self.product, self.values, self.said)


class PhaseRunner:
    def __init__(self, db: Database, flows: progress.Progress, peers: Peers) -> None:
        self._db = db
        self._flows = flows
        self._peers = peers

    async def run(self, phase_id: str) -> None:
        await attempts.run(self._db, progress.JOBS, phase_id, self._work)

    async def _work(self, attempt: Attempt[LockedPhase]) -> Outcome[LockedPhase]:
        inputs = await self._inputs(attempt.row.product_id)
        if attempt.row.number == 2:
            return self._outcome(await self._research(attempt, inputs))
        return await self._analyse(attempt, inputs)

    async def _inputs(self, product_id: UUID) -> PhaseInputs:
        mine = {"id": product_id}
        async with self._db.transaction(auth.current().owner) as m:
            product = await m.one(product_rows.SELECT_PRODUCT, mine)
            images = await m.all(_SELECT_IMAGES, mine)
            found = await m.all(_SELECT_VALUES, mine)
            said = await review_rows.edits(m, product_id)
        values = {row.phase: row.value[result_rows.VALUES[row.phase]] for row in found}
        return PhaseInputs(product, images, values, said)

    async def _analyse(
        self, attempt: Attempt[LockedPhase], inputs: PhaseInputs
    ) -> Outcome[LockedPhase]:
        """Runs phase 1, 3 or 4, which is an analysis of `conversions`."""
        number = attempt.row.number
        analysis = await self._analysed(attempt, inputs)
        attempt.model = analysis.recipe.model
        value = _VALUES[number](plain(analysis.result, "result"))
        if number == 4:
            value["images"] = [await self._listed(image) for image in inputs.images]
        evidence = [result_rows.plain(item) for item in analysis.evidence]
        model = analysis.recipe.model
        found = PhaseOutcome(
            _phase_value(number, value), analysis.confidence, "service", model, evidence
        )
        return self._outcome(found, analysis.credits)

    async def _analysed(
        self, attempt: Attempt[LockedPhase], inputs: PhaseInputs
    ) -> analysis_pb2.Analysis:
        """Runs the phase's analysis, or keeps waiting for the one that an earlier attempt
        created."""
        phase = attempt.row
        stub = self._peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        request = analysis_pb2.CreateAnalysisRequest(
            request_id=f"{phase.id}/{phase.retry_count}",
            task=_TASKS[phase.number],
            product_id=str(phase.product_id),
            images=[
                analysis_pb2.AnalysisImage(asset_id=str(row.asset_id), view=row.view)
                for row in inputs.images
            ],
            facts=facts_message(inputs.facts()),
        )
        created: analysis_pb2.CreateAnalysisResponse = await stub.CreateAnalysis(request)
        try:
            analysis = await self._finished(stub, created.analysis.id)
        except asyncio.CancelledError:
            await self._cancel_if_asked(stub, phase, created.analysis.id)
            raise
        if analysis.state != job_pb2.JOB_STATE_COMPLETED:
            text = (
                analysis.error_message
                or "the analysis was cancelled at conversions; retry the phase"
            )
            raise JobFailed(analysis.error_class or "ANALYSIS_CANCELLED", text)
        return analysis

    async def _finished(self, stub: Any, analysis_id: str) -> analysis_pb2.Analysis:
        """Waits until the analysis has ended, without a limit: many others may be before it. Renews
        the watch, because its token is short-lived."""
        request = analysis_pb2.WatchAnalysesRequest(analysis_ids=[analysis_id])
        item: analysis_pb2.WatchAnalysesResponse
        while True:
            try:
                async for item in stub.WatchAnalyses(request, timeout=_WATCH_SECONDS):
                    if item.WhichOneof("item") == "analysis" and item.analysis.state in _FINAL:
                        return item.analysis
            except DomainError as error:
                if error.reason != Reason.ERROR_REASON_DEADLINE:
                    raise

    async def _cancel_if_asked(self, stub: Any, phase: Phase, analysis_id: str) -> None:
        """Cancels the analysis if a stop of the phase was requested. A worker that is only
        restarting leaves it to the next attempt."""
        try:
            stops = await self._db.system_all(_SELECT_STOP, {"id": phase.id})
            if any(stops):
                request = analysis_pb2.CancelAnalysisRequest(
                    request_id=f"{phase.id}/{phase.retry_count}/stop", analysis_id=analysis_id
                )
                await stub.CancelAnalysis(request, timeout=2)
        except (DomainError, psycopg.Error) as error:
            _log.warning(
                "the analysis goes on by itself", analysis=analysis_id, error=type(error).__name__
            )

    async def _listed(self, image: ProductImage) -> dict[str, Any]:
        """Returns an image as a listing shows it, with its variants that haven't failed."""
        stub = self._peers.stub(variant_pb2_grpc.VariantServiceStub)
        request = variant_pb2.ListVariantsRequest(asset_id=str(image.asset_id))
        answer: variant_pb2.ListVariantsResponse = await stub.ListVariants(request)
        variants = [
            {"variant_id": variant.id, "preset": variant.preset}
            for variant in answer.variants
            if variant.state != asset_pb2.VARIANT_STATE_FAILED
        ]
        return {
            "asset_id": str(image.asset_id),
            "view": image.view,
            "primary": image.is_primary,
            "variants": variants,
        }

    async def _research(self, attempt: Attempt[LockedPhase], inputs: PhaseInputs) -> PhaseOutcome:
        """Runs phase 2: looks the product up in the owner's price book, or nowhere if it has no
        provider."""
        attempt.model = inputs.product.market_provider
        if inputs.product.market_provider == "none":
            text = "the product has no market provider; nothing was looked up"
            return PhaseOutcome(_phase_value(2, {}), None, "service", "none", note=text)
        async with self._db.transaction(auth.current().owner) as m:
            found, text = await price_book_rows.look_up(m, inputs.facts())
        confidence = 1.0 if found else None
        evidence = [{"name": "match", "value": 1.0, "weight": 1.0, "note": text}] if found else []
        return PhaseOutcome(
            _phase_value(2, found), confidence, "service", "price_book", evidence, text
        )

    def _outcome(self, found: PhaseOutcome, credits: int = 0) -> Outcome[LockedPhase]:
        async def finish(m: Mutation, phase: LockedPhase) -> None:
            await self._flows.finish(m, phase, found)

        columns = {"confidence": found.confidence}
        return Outcome(
            columns, to=found.state, credits=credits, publishes=True, in_transaction=finish
        )


def _phase_value(number: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of the PhaseValue, in the one form in which it is stored."""
    return result_rows.plain(result_rows.value({result_rows.VALUES[number]: value}))


def _only(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: found[name] for name in names if found.get(name) is not None}


def _product_analysis(found: Mapping[str, Any]) -> dict[str, Any]:
    value = _only(found, "name", "model", "condition", "condition_details", "categories", "brands")
    value["colours"] = [
        _only(colour, "view", "hex", "name", "share") for colour in found.get("colours") or ()
    ]
    if quality := found.get("image_quality"):
        pictures = []
        for picture in quality["pictures"]:
            about = _only(picture, "view", "width", "height", "score")
            pictures.append(
                {
                    **about,
                    "measures": {name: picture[name] for name in picture if name not in about},
                }
            )
        value["image_quality"] = {"score": quality["score"], "pictures": pictures}
    return value


def _seo_analysis(found: Mapping[str, Any]) -> dict[str, Any]:
    value = _only(found, "title", "description", "keywords", "slug")
    value["scores"] = [
        {"name": name, **score} for name, score in (found.get("scores") or {}).items()
    ]
    return value


def _product_listing(found: Mapping[str, Any]) -> dict[str, Any]:
    value = _only(
        found,
        "title",
        "bullets",
        "description",
        "category",
        "subcategory",
        "condition",
        "condition_details",
    )
    if price := found.get("price"):
        value["price"] = _only(price, "amount", "currency")
        value["price_source"] = price["source"]
    return value


_VALUES = {1: _product_analysis, 3: _seo_analysis, 4: _product_listing}
