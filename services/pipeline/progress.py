"""How a product moves: the one place where phases, results, reviews, logs and the product's own
state change together.

Everything here works on an open transaction and never commits. Locks are taken in one order: a
phase, its result and review, the next phase, the product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from services.pipeline import log_rows, records, rules
from shared.background import attempts, jobs
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.rpc import errors

TASK = "run_phase"
_JUST_BEGUN = timedelta(seconds=2)  # a wait
QUEUE = "phases"
PREPARE_TASK = "prepare_product"
PREPARE_QUEUE = "products"

_LOCK_PHASE = """
    SELECT *, COALESCE(lease_expires_at < now(), false) AS lease_passed FROM phases
    WHERE product_id = %(product_id)s AND number = %(number)s FOR UPDATE
"""
_LOCK_PRODUCT = "SELECT * FROM products WHERE id = %s FOR UPDATE"
_STORE_RESULT = """
    INSERT INTO results AS r (id, owner, product_id, phase, value, confidence, source, provider,
        evidence)
    VALUES (%(id)s, %(owner)s, %(product_id)s, %(phase)s, %(value)s, %(confidence)s, %(source)s,
        %(provider)s,
            %(evidence)s)
    ON CONFLICT (product_id, phase) DO UPDATE SET version = r.version + 1, updated_at = now(),
        value = excluded.value,
        confidence = excluded.confidence, source = excluded.source, provider = excluded.provider,
        evidence = excluded.evidence
    RETURNING *
"""
_OPEN_REVIEW = """
    INSERT INTO reviews (id, owner, product_id, phase_id, phase, model_value, model_confidence,
        evidence)
    VALUES (%(id)s, %(owner)s, %(product_id)s, %(phase_id)s, %(phase)s, %(value)s, %(confidence)s,
        %(evidence)s)
    RETURNING *
"""
_EDITS = """
    SELECT phase, model_value, reviewer_value, effective_value FROM reviews
    WHERE product_id = %s AND state = 'edited' ORDER BY decided_at, id
"""
_STAMPED = {
    "running": "UPDATE phases SET started_at = now() WHERE id = %s RETURNING *",
    "stopped": "UPDATE phases SET stopped_at = now() WHERE id = %s RETURNING *",
    "completed": "UPDATE phases SET completed_at = now() WHERE id = %s RETURNING *",
}


@dataclass(frozen=True)
class Finding:
    """What a run or a reviewer came to. `value`: JSON of a PhaseValue; `confidence` None: there is
    none to give."""

    value: Mapping[str, Any]
    confidence: float | None
    source: str
    provider: str
    evidence: Sequence[Mapping[str, Any]] = ()
    log: str = (
        ""  # a line about what was found, if there is more to say than that the phase is done
    )


async def lock_phase(m: Mutation, product_id: UUID, number: int) -> Any:
    """The owner's phase, locked until the commit; `lease_passed` says whether its outside runner is
    late."""
    row = await m.one(_LOCK_PHASE, {"product_id": product_id, "number": number})
    if row is None:
        raise errors.not_found("product", product_id)
    return row


async def what_people_said(m: Mutation, product_id: UUID) -> dict[int, dict[str, Any]]:
    """By phase the fields that reviewers decided on, see rules.ByPhase."""
    found: dict[int, dict[str, Any]] = {}
    for row in await m.all(_EDITS, (product_id,)):
        model, reviewer, effective = (
            stored[records.VALUES[row.phase]]
            for stored in (row.model_value, row.reviewer_value, row.effective_value)
        )
        found[row.phase] = rules.said_in(model, reviewer, effective)
    return found


async def move(m: Mutation, phase: Any, to: str, **columns: Any) -> Any:
    """Moves a locked phase and tells of it. Returns its new row."""
    row = await states.advance(m, rules.PHASE_STATES, "phases", phase.id, to, **columns)
    if row is None:
        raise RuntimeError(f"the machine has no way from {phase.state} to {to}")
    return await _tell(m, row)


async def _tell(m: Mutation, row: Any) -> Any:
    if row.state in _STAMPED:
        row = await m.one(_STAMPED[row.state], (row.id,))
    await records.publish_phase(m, row)
    return row


async def settle(m: Mutation, product_id: UUID, **columns: Any) -> Any:
    """Brings the product in line with its phases, setting `columns`, too. Comes last: it locks the
    product."""
    product = await m.one(_LOCK_PRODUCT, (product_id,))
    phases = await m.all(
        "SELECT * FROM phases WHERE product_id = %s ORDER BY number", (product_id,)
    )
    state, running = rules.product_state(columns.get("preparation", product.preparation), phases)
    wanted: dict[str, Any] = {"running": running, "error_class": "", "error_message": ""}
    if state == "error":
        wanted |= {"error_class": product.error_class, "error_message": product.error_message}
    for phase in phases:
        if phase.state == "failed":
            about = (
                f"phase {phase.number} ({rules.PHASE_NAMES[phase.number]}): {phase.error_message}"
            )
            wanted |= {"error_class": phase.error_class, "error_message": about}
    wanted |= columns
    if state == product.state and all(
        getattr(product, name) == value for name, value in wanted.items()
    ):
        return product
    row = await states.advance(m, rules.PRODUCT_STATES, "products", product_id, state, **wanted)
    if row is None:
        raise RuntimeError(f"the machine has no way from {product.state} to {state}")
    await records.publish_product(m, row)
    return row


class Progress:
    """The flows that may start a job."""

    def __init__(self, queue: jobs.JobQueue) -> None:
        self._queue = queue

    async def prepare(self, m: Mutation, product_id: UUID) -> None:
        await self._queue.enqueue(m, PREPARE_TASK, PREPARE_QUEUE, product_id)

    async def start(self, m: Mutation, phase: Any, **columns: Any) -> Any:
        """Makes a locked phase due: a worker gets it, or an outside runner may. Returns its new
        row."""
        row = await move(m, phase, "pending", started=True, **columns)
        if not row.external:
            await self._queue.enqueue(m, TASK, QUEUE, row.id)
        text = "waits for an outside runner" if row.external else "is started"
        await log_rows.add(m, row.product_id, row.number, "phase_started", f"{_named(row)} {text}")
        return row

    async def again(self, m: Mutation, phase: Any) -> Any:
        """Starts a locked phase anew and counts it. Phase 1 looks at the images first, if they were
        the trouble."""
        afresh = {
            "retry_count": phase.retry_count + 1,
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
        if await self._prepared(m, phase):
            return await self.start(m, phase, **afresh)
        row = await move(m, phase, "pending", started=False, **afresh)
        await m.run("UPDATE products SET preparing_since = now() WHERE id = %s", (row.product_id,))
        await self.prepare(m, row.product_id)
        await settle(m, row.product_id, preparation="pending")
        return row

    async def _prepared(self, m: Mutation, phase: Any) -> bool:
        product = await m.one("SELECT preparation FROM products WHERE id = %s", (phase.product_id,))
        return bool(product.preparation == "done")

    async def finish(self, m: Mutation, phase: Any, finding: Finding) -> Any:
        """Keeps what a phase found, that has just been moved to COMPLETED or AWAITING_REVIEW, and
        goes on from there.

        Called within the transaction of that move, before anything tells of it: watchers see the
        result first. Returns the result's row.
        """
        said = await what_people_said(m, phase.product_id)
        kind = records.VALUES[phase.number]
        value = finding.value[kind]
        if finding.source != "reviewer":
            value = rules.standing(phase.number, value, said)
        kept = {
            "owner": m.owner,
            "product_id": phase.product_id,
            "phase": phase.number,
            "value": Jsonb({kind: value}),
            "confidence": finding.confidence,
            "evidence": Jsonb(list(finding.evidence)),
        }
        stored = {**kept, "id": new_id(), "source": finding.source, "provider": finding.provider}
        result = await m.one(_STORE_RESULT, stored)
        await records.publish_result(m, result)
        phase = await _tell(m, phase)
        if finding.log:
            await log_rows.add(m, phase.product_id, phase.number, "phase_found", finding.log)
        if phase.state == "awaiting_review":
            review = await m.one(_OPEN_REVIEW, {**kept, "id": new_id(), "phase_id": phase.id})
            await records.publish_review(m, review)
            text = f"{_named(phase)} waits for a person: its confidence is {finding.confidence:.3f}"
            await log_rows.add(
                m, phase.product_id, phase.number, "review_opened", text, level="warning"
            )
        else:
            await log_rows.add(
                m,
                phase.product_id,
                phase.number,
                "phase_completed",
                f"{_named(phase)} is completed",
                details={"provider": finding.provider, "confidence": finding.confidence},
            )
            await self._advance(m, phase)
        about: dict[str, Any] = {"confidence": finding.confidence} if phase.number == 1 else {}
        if phase.number == 1 and finding.source == "reviewer":
            named = [name for name in ("name", "model") if name in {**value, **said.get(1, {})}]
            about |= {name: value.get(name, "").strip() for name in named}
        await settle(m, phase.product_id, **about)
        return result

    async def _advance(self, m: Mutation, phase: Any) -> None:
        """Starts the next phase, or stops it, if somebody asked this one to stop when it was as
        good as done."""
        if phase.number == rules.PHASES[-1]:
            return
        following = await lock_phase(m, phase.product_id, phase.number + 1)
        if phase.cancel_requested:
            await stop(
                m,
                following,
                f"{_named(phase)} was done before it could be stopped; {_named(following)} is"
                " stopped",
            )
            return
        product = await m.one(
            "SELECT auto_advance FROM products WHERE id = %s", (phase.product_id,)
        )
        if product.auto_advance:
            await self.start(m, following)


async def stop(m: Mutation, phase: Any, text: str = "") -> Any:
    """Stops a locked phase that no worker has, and withdraws its open review. Does not settle the
    product."""
    await end_attempt(m, phase, "cancelled")
    row = await move(m, phase, "stopped", attempt_token=None, lease_expires_at=None)
    for review in await m.all(
        "SELECT * FROM reviews WHERE phase_id = %s AND state = 'open' FOR UPDATE", (phase.id,)
    ):
        withdrawn = await states.advance(m, rules.REVIEW_STATES, "reviews", review.id, "withdrawn")
        await records.publish_review(m, withdrawn)
    await log_rows.add(
        m, row.product_id, row.number, "phase_stopped", text or f"{_named(row)} is stopped"
    )
    return row


async def fail(m: Mutation, phase: Any, error_class: str, message: str) -> Any:
    """Fails a locked phase that no worker has."""
    await end_attempt(m, phase, "failed", error_class, message)
    row = await move(
        m,
        phase,
        "failed",
        attempt_token=None,
        lease_expires_at=None,
        error_class=error_class,
        error_message=message,
    )
    await _log_failure(m, row)
    await settle(m, row.product_id)
    return row


async def lose(m: Mutation, phase: Any) -> Any:
    """Takes a locked phase from an outside runner whose lease has passed; after too many it
    fails."""
    message = "its runner let the lease pass without a heartbeat"
    if phase.attempt_number >= rules.MAX_ATTEMPTS:
        await end_attempt(m, phase, "lost", "WORKER_LOST", message)
        return await fail(
            m,
            phase,
            "WORKER_LOST",
            f"{phase.attempt_number} runners let their leases pass; retry it",
        )
    await end_attempt(m, phase, "lost", "WORKER_LOST", message)
    row = await move(m, phase, "pending", attempt_token=None, lease_expires_at=None)
    text = f"{_named(row)} waits for a runner again: {message}"
    await log_rows.add(m, row.product_id, row.number, "lease_passed", text, level="warning")
    await settle(m, row.product_id)
    return row


async def end_attempt(
    m: Mutation, phase: Any, outcome: str, error_class: str = "", message: str = ""
) -> None:
    """Ends the record of the try that has the phase, if one has."""
    await attempts.record_end(
        m, phase.attempt_token, outcome, error_class=error_class, error_message=message
    )


async def follow(m: Mutation, row: Any) -> None:
    """What a worker's move of a phase brings with it: shared.background.attempts calls it within
    the transaction of the move.

    COMPLETED and AWAITING_REVIEW are told by Progress.finish, after their result.
    """
    match row.state:
        case "running":
            row = await _tell(m, row)
            if not row.waits_for:  # a wait has a thousand tries
                again = f", try {row.attempt_number}" if row.attempt_number > 1 else ""
                await log_rows.add(
                    m,
                    row.product_id,
                    row.number,
                    "phase_running",
                    f"{_named(row)} is running{again}",
                )
        case "pending":
            row = await _tell(m, row)
            if not row.waits_for or row.updated_at - row.waiting_since < _JUST_BEGUN:
                why = row.error_message or "its worker was stopped"
                text = f"{_named(row)} will be tried again: {why}"
                await log_rows.add(
                    m, row.product_id, row.number, "phase_retried", text, level="warning"
                )
        case "failed":
            row = await _tell(m, row)
            await _log_failure(m, row)
        case "stopped":
            row = await _tell(m, row)
            await log_rows.add(
                m, row.product_id, row.number, "phase_stopped", f"{_named(row)} is stopped"
            )
        case _:
            return
    await settle(m, row.product_id)


async def _log_failure(m: Mutation, row: Any) -> None:
    await log_rows.add(
        m,
        row.product_id,
        row.number,
        "phase_failed",
        f"{_named(row)} failed: {row.error_message}",
        level="error",
        details={"error_class": row.error_class},
    )


def _named(phase: Any) -> str:
    return f"phase {phase.number} ({rules.PHASE_NAMES[phase.number]})"
