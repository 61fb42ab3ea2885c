"""Moves products forward: the one place where phases, results, reviews, logs and the product's own
state change together.

Every function works in an open transaction and never commits. Locks are taken in one order: a
phase, its result and review, the next phase, the product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from services.pipeline import (
    knowing,
    log_rows,
    phase_pause_rows,
    phase_rows,
    product_rows,
    rated_rows,
    result_rows,
    review_rows,
    rules,
    sources,
)
from services.pipeline.phase_rows import PHASES, STAMPS, LockedPhase, Phase, named
from services.pipeline.product_rows import PRODUCTS
from services.pipeline.result_rows import Result
from services.pipeline.review_rows import REVIEWS
from services.pipeline.reviewing import ReviewPolicy
from shared.background import jobs, leases
from shared.background.job_tables import JobTable
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement

TASK = "run_phase"
QUEUE = "phases"
PREPARE_TASK = "prepare_product"
PREPARE_QUEUE = "products"
_LEASE_PASSED = "its runner let the lease pass without a heartbeat"
_JUST_BEGUN = timedelta(seconds=2)  # a younger wait counts as new

_SELECT_AUTO_ADVANCE = Statement(bool, "SELECT auto_advance FROM products WHERE id = %(id)s")
_RESET_PREPARING = Command("UPDATE products SET preparing_since = now() WHERE id = %(id)s")
_LOCK_OPEN_REVIEWS = Statement(
    UUID, "SELECT id FROM reviews WHERE phase_id = %(phase_id)s AND state = 'open' FOR UPDATE"
)
_DELETE_ATTEMPT = Command("DELETE FROM attempts WHERE id = %(id)s")
_INSERT_REVIEW = REVIEWS.insert(
    "id",
    "owner",
    "product_id",
    "phase_id",
    "phase",
    "model_value",
    "model_confidence",
    "evidence",
    "findings",
    "due_at",
    "decisions_needed",
    "sample",
)


@dataclass(frozen=True)
class PhaseOutcome:
    """The outcome of a run or a review. `value`: JSON of a PhaseValue. `confidence`: None if there
    is no figure to give."""

    value: Mapping[str, Any]
    confidence: float | None
    source: str
    provider: str
    evidence: Sequence[Mapping[str, Any]] = ()
    # Who says each value: as the phase found it, or of a review as it leaves it.
    findings: sources.Findings = ()
    # a log line about what was found, if there is more to say than that the phase is completed
    note: str = ""


async def _advance(m: Mutation, phase: LockedPhase, to: str, **columns: Any) -> LockedPhase:
    """Moves a locked phase; the caller publishes it. Returns its new row."""
    stamps = () if to == phase.state else STAMPS.get(to, ())
    return await states.move(m, rules.PHASE_STATES, PHASES, phase, to, stamps=stamps, **columns)


async def _move(m: Mutation, phase: LockedPhase, to: str, **columns: Any) -> LockedPhase:
    """Moves a locked phase and publishes it. Returns its new row."""
    row = await _advance(m, phase, to, **columns)
    await phase_rows.publish(m, row)
    return row


async def log(
    m: Mutation,
    phase: Phase,
    action: str,
    text: str,
    level: str = "info",
    details: Mapping[str, object] | None = None,
) -> None:
    """Adds a log line about a phase."""
    await log_rows.add(
        m, phase.product_id, phase.number, action, text, level=level, details=details
    )


async def settle(m: Mutation, product_id: UUID, **columns: Any) -> None:
    """Updates the product's state from its phases, sets `columns`, and publishes the product if
    anything changed. Callers do this last, because it locks the product."""
    product = await product_rows.lock(m, product_id)
    phases = await m.all(phase_rows.SELECT_PHASES, {"ids": [product_id]})
    preparation = str(columns.get("preparation", product.preparation))
    state, running = rules.product_state(preparation, phases)
    wanted: dict[str, Any] = {"running": running, "error_class": "", "error_message": ""}
    if state == "error":
        wanted |= {"error_class": product.error_class, "error_message": product.error_message}
    for phase in phases:
        if phase.state == "failed":
            about = f"{named(phase)}: {phase.error_message}"
            wanted |= {"error_class": phase.error_class, "error_message": about}
    wanted |= columns
    if state == product.state and all(
        getattr(product, name) == value for name, value in wanted.items()
    ):
        return
    row = await states.move(m, rules.PRODUCT_STATES, PRODUCTS, product, state, **wanted)
    await product_rows.publish(m, row)


class Progress:
    """The changes that may enqueue a job."""

    def __init__(self, queue: jobs.JobQueue, policy: ReviewPolicy) -> None:
        self._queue = queue
        self._policy = policy

    def state_after(self, number: int, outcome: PhaseOutcome) -> str:
        """Returns the state that phase `number` moves to with this outcome. Call it once: it draws
        lots for the sample."""
        asks = self._policy.wants_review(number, outcome.confidence, outcome.source)
        return "awaiting_review" if asks else "completed"

    async def prepare(self, m: Mutation, product_id: UUID) -> None:
        await self._queue.enqueue(m, PREPARE_TASK, PREPARE_QUEUE, product_id)

    async def start(self, m: Mutation, phase: LockedPhase, **columns: Any) -> LockedPhase:
        """Makes a locked phase due: enqueues its job, or lets an outside worker claim it. Returns
        its new row. Raises FAILED_PRECONDITION if the product is in the trash."""
        await product_rows.check_usable(m, phase.product_id)
        row = await _move(m, phase, "pending", started=True, **columns)
        if not row.external:
            await self._queue.enqueue(m, TASK, QUEUE, row.id)
        text = "waits for an outside worker" if row.external else "is started"
        await log(m, row, "phase_started", f"{named(row)} {text}")
        return row

    async def retry(self, m: Mutation, phase: LockedPhase) -> LockedPhase:
        """Starts a locked phase again and counts the retry. If the images were the problem, phase 1
        prepares them first. Returns its new row. Raises FAILED_PRECONDITION if the product is in
        the trash."""
        await product_rows.check_usable(m, phase.product_id)
        afresh = _afresh(phase)
        preparation = await m.one(product_rows.SELECT_PREPARATION, {"id": phase.product_id})
        if preparation == "done":
            return await self.start(m, phase, **afresh)
        row = await _move(m, phase, "pending", started=False, **afresh)
        await m.run(_RESET_PREPARING, {"id": row.product_id})
        await self.prepare(m, row.product_id)
        await settle(m, row.product_id, preparation="pending")
        return row

    async def complete(
        self, m: Mutation, phase: LockedPhase, outcome: PhaseOutcome, **columns: Any
    ) -> tuple[LockedPhase, Result]:
        """Moves a locked phase to COMPLETED or AWAITING_REVIEW and finishes it. Returns its new row
        and its result."""
        state = self.state_after(phase.number, outcome)
        columns |= {"confidence": outcome.confidence, "stale": False}
        row = await _advance(m, phase, state, **columns)
        return row, await self.finish(m, row, outcome)

    async def finish(self, m: Mutation, phase: LockedPhase, outcome: PhaseOutcome) -> Result:
        """Stores the result of a phase that was just moved to COMPLETED or AWAITING_REVIEW.
        Publishes the result, then the phase, and opens a review or starts the next phase. Returns
        the result."""
        asked = knowing.ask(m, phase.product_id)
        said = await review_rows.edits(m, phase.product_id)
        facts = knowing.known(asked, phase.number, said)
        result = await _store_result(m, phase, outcome, said, facts)
        await result_rows.publish(m, result)
        await phase_rows.publish(m, phase)
        if outcome.note:
            await log(m, phase, "phase_found", outcome.note)
        if outcome.confidence is not None and outcome.source != "reviewer":
            await self._rate(m, phase, result, outcome.confidence)
        if phase.state == "completed":
            about = {"provider": outcome.provider, "confidence": outcome.confidence}
            await log(m, phase, "phase_completed", f"{named(phase)} is completed", details=about)
            await self._start_next(m, phase)
        columns = _product_columns(result, said)
        await settle(m, phase.product_id, **columns)
        return result

    async def _rate(self, m: Mutation, phase: Phase, result: Result, confidence: float) -> None:
        """Opens the review that the phase waits for, if it does, and counts the result."""
        confident = self._policy.is_confident(phase.number, confidence)
        row_id = new_id()
        if phase.state == "awaiting_review":
            row_id = await _open_review(m, phase, result, self._policy, sample=confident)
        await rated_rows.add(
            m, row_id, phase.number, result.provider, confidence, confident=confident
        )

    async def _start_next(self, m: Mutation, phase: LockedPhase) -> None:
        """Starts the next phase if the product advances by itself. If a stop of this phase was
        requested too late, stops the next one instead."""
        if phase.number == rules.PHASES[-1]:
            return
        following = await phase_rows.lock(m, phase.product_id, phase.number + 1)
        if phase.cancel_requested:
            text = f"{named(phase)} was done before it could be stopped"
            await stop(m, following, f"{text}; {named(following)} is stopped")
        elif await m.one(_SELECT_AUTO_ADVANCE, {"id": phase.product_id}):
            await self.start(m, following)


def _afresh(phase: Phase) -> dict[str, Any]:
    """Returns the columns of a phase that is to run once more, as if it had not run before."""
    return {
        "retry_count": phase.retry_count + 1,
        "confidence": None,
        "completed_at": None,
        "attempt_number": 0,
        "attempt_token": None,
        "lease_expires_at": None,
        "faults": 0,
        "losses": 0,
        "waits_for": "",
        "waiting_since": None,
        "cancel_requested": False,
        "error_class": "",
        "error_message": "",
    }


async def mark_stale(m: Mutation, phases: Sequence[LockedPhase]) -> None:
    """Makes locked phases wait for those before them, which run again: each becomes PENDING, keeps
    its result until it is replaced, and its open review is withdrawn. Doesn't settle the
    product."""
    for phase in phases:
        if phase.state == "pending":
            continue  # it has not begun, or is stale already
        await _withdraw_reviews(m, phase)
        row = await _move(m, phase, "pending", started=False, stale=True, **_afresh(phase))
        text = f"{named(row)} is stale: a phase before it runs again"
        await log(m, row, "phase_stale", text)


async def _withdraw_reviews(m: Mutation, phase: Phase) -> None:
    for review_id in await m.all(_LOCK_OPEN_REVIEWS, {"phase_id": phase.id}):
        review = await states.advance(m, rules.REVIEW_STATES, REVIEWS, review_id, "withdrawn")
        if review is not None:
            await review_rows.publish(m, review)


async def _store_result(
    m: Mutation,
    phase: Phase,
    outcome: PhaseOutcome,
    said: rules.ByPhase,
    facts: sources.Known,
) -> Result:
    """Stores what a phase found, with what reviewers decided in earlier phases."""
    kind = result_rows.VALUES[phase.number]
    value, findings = outcome.value[kind], outcome.findings
    if outcome.source != "reviewer":
        value = rules.standing(phase.number, value, said)
        findings = sources.settled(phase.number, value, findings, facts)
    return await m.one(
        result_rows.UPSERT_RESULT,
        {
            "id": new_id(),
            "owner": m.owner,
            "product_id": phase.product_id,
            "phase": phase.number,
            "value": Jsonb({kind: value}),
            "confidence": outcome.confidence,
            "source": outcome.source,
            "provider": outcome.provider,
            "evidence": Jsonb(list(outcome.evidence)),
            "findings": Jsonb(list(findings)),
            "inputs_at": phase.started_at,
        },
    )


async def _open_review(
    m: Mutation, phase: Phase, result: Result, policy: ReviewPolicy, *, sample: bool
) -> UUID:
    """Opens the review of a phase's result. Returns its id."""
    review = await m.one(
        _INSERT_REVIEW,
        {
            "id": new_id(),
            "owner": m.owner,
            "product_id": phase.product_id,
            "phase_id": phase.id,
            "phase": phase.number,
            "model_value": Jsonb(result.value),
            "model_confidence": result.confidence,
            "evidence": Jsonb(result.evidence),
            "findings": Jsonb(result.findings),
            "due_at": phase.updated_at + policy.due_in if policy.due_in else None,
            "decisions_needed": policy.decisions,
            "sample": sample,
        },
    )
    await review_rows.publish(m, review)
    why = "as a sample, " if sample else ""
    text = (
        f"{named(phase)} waits for a person: {why}its confidence is {review.model_confidence:.3f}"
    )
    await log(m, phase, "review_opened", text, "info" if sample else "warning")
    return review.id


def _product_columns(result: Result, said: rules.ByPhase) -> dict[str, object]:
    """Returns the product's columns that follow from the result of phase 1 or 2."""
    if result.phase == 2:
        looked = result.provider != "none"
        return {"nothing_found": looked and not result.value[result_rows.VALUES[2]]}
    if result.phase != 1:
        return {}
    columns: dict[str, object] = {"confidence": result.confidence}
    if result.source == "reviewer":
        value = result.value[result_rows.VALUES[1]]
        decided = [name for name in rules.OWN if name in {**value, **said.get(1, {})}]
        columns |= {name: value.get(name, "").strip() for name in decided}
    return columns


async def request_stop(m: Mutation, phase: LockedPhase) -> LockedPhase:
    """Asks the worker that runs a locked phase to stop. Returns its new row."""
    row = await _move(m, phase, "running", cancel_requested=True)
    await log(m, row, "stop_requested", "the worker was asked to stop")
    return row


async def stop(m: Mutation, phase: LockedPhase, text: str = "") -> LockedPhase:
    """Stops a locked phase that no worker of this service runs, and withdraws its open review.
    Doesn't settle the product. Returns its new row."""
    await leases.end_attempt(m, phase, "cancelled")
    row = await _move(m, phase, "stopped", attempt_token=None, lease_expires_at=None)
    await _withdraw_reviews(m, phase)
    await log(m, row, "phase_stopped", text or f"{named(row)} is stopped")
    return row


async def expire_lease(m: Mutation, phase: LockedPhase) -> LockedPhase:
    """Ends the attempt of an outside worker whose lease has passed. The locked phase is due again,
    or fails after rules.MAX_ATTEMPTS attempts. Returns its new row."""
    if phase.attempt_number >= rules.MAX_ATTEMPTS:
        text = f"{phase.attempt_number} runners let their leases pass; retry it"
        return await leases.give_up(m, JOBS, phase, "WORKER_LOST", text, retryable=False, lost=True)
    await leases.end_attempt(m, phase, "lost", "WORKER_LOST", _LEASE_PASSED)
    return await JOBS.move(
        m,
        phase,
        "pending",
        attempt_token=None,
        lease_expires_at=None,
        error_class="WORKER_LOST",
        error_message=f"{_LEASE_PASSED}; another runner may claim it",
    )


async def undo_claim(m: Mutation, phase: LockedPhase) -> LockedPhase:
    """Undoes a claim: deletes its attempt, and makes the locked phase due with the attempt number
    that it had before. Returns its new row."""
    await m.run(_DELETE_ATTEMPT, {"id": phase.attempt_token})
    number = phase.attempt_number - 1
    row = await _move(
        m, phase, "pending", attempt_token=None, attempt_number=number, lease_expires_at=None
    )
    text = f"{named(row)} waits for a runner again: its images can't be asked for"
    await log(m, row, "claim_undone", text)
    await settle(m, row.product_id)
    return row


async def record_move(m: Mutation, phase: Phase) -> None:
    """Adds the log line about a phase that an attempt moved to RUNNING, PENDING, FAILED or STOPPED,
    and settles the product."""
    match phase.state:
        case "running" if not phase.waits_for:  # a wait may have a thousand attempts
            number = f", try {phase.attempt_number}" if phase.attempt_number > 1 else ""
            await log(m, phase, "phase_running", f"{named(phase)} is running{number}")
        case "pending" if phase.external:
            text = f"{named(phase)} waits for a runner again: {_LEASE_PASSED}"
            await log(m, phase, "lease_passed", text, "warning")
        case "pending" if _has_just_begun_to_wait(phase):
            why = phase.error_message or "its worker was stopped"
            text = f"{named(phase)} will be tried again: {why}"
            await log(m, phase, "phase_retried", text, "warning")
        case "failed":
            text = f"{named(phase)} failed: {phase.error_message}"
            about = {"error_class": phase.error_class}
            await log(m, phase, "phase_failed", text, "error", about)
        case "stopped":
            await log(m, phase, "phase_stopped", f"{named(phase)} is stopped")
    await settle(m, phase.product_id)


def _has_just_begun_to_wait(phase: Phase) -> bool:
    """Returns whether the wait is new, or the phase waits for nothing but its next attempt."""
    return phase.waiting_since is None or phase.updated_at - phase.waiting_since < _JUST_BEGUN


JOBS = JobTable(
    PHASES,
    rules.PHASE_STATES,
    "running",
    "completed",
    phase_rows.publish,
    max_attempts=rules.MAX_ATTEMPTS,
    ready=rules.is_due,
    pauses=frozenset({phase_pause_rows.WAITS_FOR}),
    cancelled="stopped",
    stamps=STAMPS,
    in_transaction=record_move,
)
"""How attempts move phases."""
