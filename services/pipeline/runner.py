"""Runs phases in a worker."""

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
from atelier.assets.v1 import asset_pb2, variant_pb2, variant_pb2_grpc
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2
from google.protobuf import json_format

from services.pipeline import phase_inputs, progress, result_rows, rules, sources
from services.pipeline.phase_inputs import PhaseInputs
from services.pipeline.phase_pause_rows import SELECT_PAUSES, WAITS_FOR, in_words
from services.pipeline.phase_rows import LockedPhase, Phase
from services.pipeline.product_rows import ProductImage
from services.pipeline.progress import PhaseOutcome
from services.pipeline.researching import MarketResearch
from shared.background import attempts
from shared.background.attempts import Attempt, JobFailed, Outcome
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import auth
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import digest, facts_message, plain

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


_SELECT_STOP = Statement(bool, "SELECT cancel_requested FROM phases WHERE id = %(id)s")


class PhaseRunner:
    def __init__(
        self, db: Database, flows: progress.Progress, peers: Peers, market: MarketResearch
    ) -> None:
        self._db = db
        self._flows = flows
        self._peers = peers
        self._market = market

    async def run(self, phase_id: str) -> None:
        await attempts.run(self._db, progress.JOBS, phase_id, self._work)

    async def _work(self, attempt: Attempt[LockedPhase]) -> Outcome[LockedPhase]:
        await self._wait_for_pause(attempt.row.number)
        async with self._db.transaction(auth.current().owner) as m:
            inputs = await phase_inputs.read(m, attempt.row)
        if attempt.row.number == 2:
            return self._outcome(2, await self._research(attempt, inputs))
        return await self._analyse(attempt, inputs)

    async def _wait_for_pause(self, number: int) -> None:
        """Raises Waits while the phase is paused for everyone."""
        for pause in await self._db.system_all(SELECT_PAUSES, {"phases": [number]}):
            raise attempts.Waits(WAITS_FOR, "PAUSED", in_words(pause), endless=True)

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
        found = sources.of_analysis(
            [result_rows.plain(item) for item in analysis.findings],
            [str(image.asset_id) for image in inputs.images],
            functools.partial(_in_form_of, number),
        )
        standing = rules.standing(number, value, inputs.said)
        confidence, evidence = _confidence(analysis, number, standing, found)
        outcome = PhaseOutcome(
            _phase_value(number, value),
            confidence,
            "service",
            analysis.recipe.model,
            evidence,
            found,
        )
        return self._outcome(number, outcome, analysis.credits)

    async def _analysed(
        self, attempt: Attempt[LockedPhase], inputs: PhaseInputs
    ) -> analysis_pb2.Analysis:
        """Runs the phase's analysis, or keeps waiting for the one that an earlier attempt
        created."""
        phase = attempt.row
        stub = self._peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        request = analysis_pb2.CreateAnalysisRequest(
            task=_TASKS[phase.number],
            product_id=str(phase.product_id),
            images=[
                analysis_pb2.AnalysisImage(asset_id=str(row.asset_id), view=row.view)
                for row in inputs.images
            ],
            facts=facts_message(inputs.facts()),
        )
        # What is asked is part of the name: the product may have changed between two attempts.
        request.request_id = f"{phase.id}/{phase.retry_count}/{digest(request)}"
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
                    request_id=f"{analysis_id}/stop", analysis_id=analysis_id
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
        """Runs phase 2."""
        phase = attempt.row
        attempt.model = inputs.product.market_provider
        question = f"{phase.id}/{phase.retry_count}"
        found = await self._market.look_up(inputs.product, inputs.facts(), question)
        value = _phase_value(2, found.value)
        said = sources.of_market(
            value[result_rows.VALUES[2]], found.provider, found.confidence, found.text
        )
        return PhaseOutcome(
            value, found.confidence, "service", found.provider, found.evidence, said, found.text
        )

    def _outcome(self, number: int, found: PhaseOutcome, credits: int = 0) -> Outcome[LockedPhase]:
        async def finish(m: Mutation, phase: LockedPhase) -> None:
            await self._flows.finish(m, phase, found)

        columns = {"confidence": found.confidence, "stale": False}
        return Outcome(
            columns,
            to=self._flows.state_after(number, found),
            credits=credits,
            publishes=True,
            in_transaction=finish,
        )


def _phase_value(number: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of the PhaseValue, in the one form in which it is stored."""
    return result_rows.plain(result_rows.value({result_rows.VALUES[number]: value}))


def _in_form_of(number: int, key: str, value: Any) -> Any:
    """Returns a value of an analysis in the form of the phase's value, if it has a field for it."""
    made = _VALUES[number]({key: value})
    if not made.get(key):
        return value
    try:
        return _phase_value(number, {key: made[key]})[result_rows.VALUES[number]].get(key, value)
    except json_format.ParseError:
        return value


def _confidence(
    analysis: analysis_pb2.Analysis, number: int, value: Mapping[str, Any], found: sources.Findings
) -> tuple[float, list[dict[str, Any]]]:
    """Returns the phase's confidence and its evidence. Phase 1 is as sure as the analysis, which
    says how much is known of the product. In phases 3 and 4 only what a model newly found counts,
    and how well the pictures can be read is evidence without a weight."""
    evidence = [result_rows.plain(item) for item in analysis.evidence]
    if number == 1:
        return analysis.confidence, evidence
    confidence, note = sources.newly_found(value, found)
    others = [{**each, "weight": 0.0} for each in evidence]
    known = {"name": "known", "value": confidence, "weight": 1.0, "note": note[:1000]}
    return confidence, [known, *others]


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
