"""What a worker does in each phase, and taking phases back from outside runners that fell
silent."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog
from atelier.assets.v1 import asset_pb2, variant_pb2, variant_pb2_grpc
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2

from services.pipeline import price_book, progress, records, rules
from shared.background import attempts
from shared.background.attempts import Attempt, JobFailed, Outcome
from shared.background.tasks import wanted
from shared.database.db import Database
from shared.rpc import auth
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import facts_message, plain

_log = structlog.get_logger("runner")

_WATCH_SECONDS = 25.0  # shorter than a service's token lives
_FINAL = frozenset(
    {job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
)
_TASKS = {
    1: analysis_pb2.ANALYSIS_TASK_PRODUCT,
    3: analysis_pb2.ANALYSIS_TASK_SEO,
    4: analysis_pb2.ANALYSIS_TASK_LISTING,
}
_LATE = """
    SELECT owner, product_id, number FROM phases
    WHERE state = 'running' AND external AND lease_expires_at < now()
        ORDER BY lease_expires_at LIMIT 100
"""


@dataclass(frozen=True)
class Known:
    """What is known of a product when a phase begins."""

    product: Any
    images: Sequence[Any]  # primary first
    values: rules.ByPhase  # what earlier phases found
    said: rules.ByPhase  # what people said of it

    def facts(self) -> dict[str, Any]:
        return rules.facts_for(self.product, self.values, self.said)


class PhaseRunner:
    def __init__(self, db: Database, flows: progress.Progress, peers: Peers) -> None:
        self._db = db
        self._flows = flows
        self._peers = peers
        self._kind = attempts.Kind(
            "phases",
            rules.PHASE_STATES,
            "running",
            "completed",
            progress.follow,
            max_attempts=rules.MAX_ATTEMPTS,
            cancelled="stopped",
        )

    async def run(self, phase_id: str) -> None:
        await attempts.run(self._db, self._kind, phase_id, self._work)

    async def _work(self, attempt: Attempt) -> Outcome:
        known = await self._known(attempt.row.product_id)
        if attempt.row.number == 2:
            return self._outcome(await self._research(attempt, known))
        return await self._analyse(attempt, known)

    async def _known(self, product_id: UUID) -> Known:
        wanted = {"id": product_id}
        async with self._db.transaction(auth.current().owner) as m:
            product = await m.one("SELECT * FROM products WHERE id = %(id)s", wanted)
            images = await m.all(
                "SELECT * FROM product_images WHERE product_id = %(id)s ORDER BY is_primary DESC,"
                " position",
                wanted,
            )
            results = await m.all(
                "SELECT phase, value FROM results WHERE product_id = %(id)s", wanted
            )
            said = await progress.what_people_said(m, product_id)
        return Known(
            product,
            images,
            {row.phase: row.value[records.VALUES[row.phase]] for row in results},
            said,
        )

    async def _analyse(self, attempt: Attempt, known: Known) -> Outcome:
        """Phases 1, 3 and 4: an analysis of `conversions`."""
        number = attempt.row.number
        analysis = await self._analysed(attempt, known)
        attempt.model = analysis.recipe.model
        found = plain(analysis.result, "result")
        if number == 4:
            value = {
                **_VALUES[4](found),
                "images": [await self._listed(image) for image in known.images],
            }
        else:
            value = _VALUES[number](found)
        evidence = [records.plain(item) for item in analysis.evidence]
        finding = progress.Finding(
            _kept(number, value), analysis.confidence, "service", analysis.recipe.model, evidence
        )
        return self._outcome(finding, analysis.credits)

    async def _analysed(self, attempt: Attempt, known: Known) -> analysis_pb2.Analysis:
        """Runs the phase's analysis, or goes on waiting for the one that an earlier try asked
        for."""
        phase = attempt.row
        stub = self._peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        request = analysis_pb2.CreateAnalysisRequest(
            request_id=f"{phase.id}/{phase.retry_count}",
            task=_TASKS[phase.number],
            product_id=str(phase.product_id),
            images=[
                analysis_pb2.AnalysisImage(asset_id=str(row.asset_id), view=row.view)
                for row in known.images
            ],
            facts=facts_message(known.facts()),
        )
        analysis = (await stub.CreateAnalysis(request)).analysis
        try:
            analysis = await self._finished(stub, analysis)
        except asyncio.CancelledError:
            await self._cancel_if_asked(stub, phase, analysis.id)
            raise
        if analysis.state != job_pb2.JOB_STATE_COMPLETED:
            text = (
                analysis.error_message
                or "the analysis was cancelled at conversions; retry the phase"
            )
            raise JobFailed(analysis.error_class or "ANALYSIS_CANCELLED", text)
        return analysis

    async def _finished(self, stub: Any, analysis: analysis_pb2.Analysis) -> analysis_pb2.Analysis:
        """Waits as long as it takes: it may be one of many. The watch is renewed, since its token
        is short-lived."""
        request = analysis_pb2.WatchAnalysesRequest(analysis_ids=[analysis.id])
        while True:
            try:
                async for item in stub.WatchAnalyses(request, timeout=_WATCH_SECONDS):
                    if item.WhichOneof("item") == "analysis" and item.analysis.state in _FINAL:
                        return item.analysis
            except DomainError as error:
                if error.reason != Reason.ERROR_REASON_DEADLINE:
                    raise

    async def _cancel_if_asked(self, stub: Any, phase: Any, analysis_id: str) -> None:
        """Passes a stop on. A worker that is only restarting leaves the analysis to the next
        try."""
        try:
            rows = await self._db.system_rows(
                "SELECT cancel_requested FROM phases WHERE id = %s", (phase.id,)
            )
            if rows and rows[0].cancel_requested:
                request = analysis_pb2.CancelAnalysisRequest(
                    request_id=f"{phase.id}/{phase.retry_count}/stop", analysis_id=analysis_id
                )
                await stub.CancelAnalysis(request, timeout=2)
        except (DomainError, psycopg.Error) as error:
            _log.warning(
                "the analysis goes on by itself", analysis=analysis_id, error=type(error).__name__
            )

    async def _listed(self, image: Any) -> dict[str, Any]:
        """An image as a listing shows it, with its variants that aren't failed."""
        stub = self._peers.stub(variant_pb2_grpc.VariantServiceStub)
        answer = await stub.ListVariants(
            variant_pb2.ListVariantsRequest(asset_id=str(image.asset_id))
        )
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

    async def _research(self, attempt: Attempt, known: Known) -> progress.Finding:
        """Phase 2: the owner's price book, or nothing."""
        attempt.model = known.product.market_provider
        if known.product.market_provider == "none":
            text = "the product has no market provider; nothing was looked up"
            return progress.Finding(_kept(2, {}), None, "service", "none", log=text)
        async with self._db.transaction(auth.current().owner) as m:
            found, text = await price_book.look_up(m, known.facts())
        confidence = 1.0 if found else None
        evidence = [{"name": "match", "value": 1.0, "weight": 1.0, "note": text}] if found else []
        return progress.Finding(
            _kept(2, found), confidence, "service", "price_book", evidence, text
        )

    def _outcome(self, finding: progress.Finding, cost: int = 0) -> Outcome:
        async def also(m: Any, phase: Any) -> None:
            await self._flows.finish(m, phase, finding)

        to = "awaiting_review" if rules.wants_review(finding.confidence) else "completed"
        return Outcome({"confidence": finding.confidence}, to=to, credits=cost, also=also)


def _kept(number: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON of the PhaseValue, in the one form in which it is stored."""
    return records.plain(records.value({records.VALUES[number]: value}))


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


async def reap_leases(db: Database, every_seconds: float) -> None:
    """Gives phases whose outside runner fell silent to the next one. Runs until cancelled; any
    number may."""
    while wanted():
        await asyncio.sleep(every_seconds)
        try:
            for late in await db.system_rows(_LATE):
                async with db.transaction(late.owner) as m:
                    phase = await progress.lock_phase(m, late.product_id, late.number)
                    if phase.state == "running" and phase.external and phase.lease_passed:
                        await progress.lose(m, phase)
        except (psycopg.Error, DomainError) as error:
            _log.warning("leases wait to be looked at", error=type(error).__name__)
