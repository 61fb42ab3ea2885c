"""Explains a review: each condition that decides what becomes of it, as a question with its
answer."""

from dataclasses import dataclass
from datetime import datetime

from atelier.pipeline.v1 import review_desk_pb2 as pb

from services.pipeline import rules
from services.pipeline.review_rows import REVIEWS, Review
from shared.database.rows import Statement


@dataclass(slots=True)
class ExplainedReview(Review):
    """A review with what decides about it."""

    asked_at: datetime
    decided_by_actor: bool
    auto_advance: bool


SELECT_EXPLAINED = Statement(
    ExplainedReview,
    f"""
    SELECT {REVIEWS.of("r")}, now() AS asked_at, p.auto_advance,
        EXISTS (SELECT FROM review_decisions d WHERE d.review_id = r.id
            AND d.decided_by = %(actor)s) AS decided_by_actor
    FROM reviews r JOIN products p ON p.id = r.product_id
    WHERE r.id = %(id)s
""",
)


def explain(row: ExplainedReview, actor: str, *, is_admin: bool) -> pb.ExplainReviewResponse:
    findings = [_state(row)]
    if row.state == "open":
        findings += [_who(row, is_admin), _holder(row, actor), _missing(row), _due(row)]
    findings += [_blocks(row), _why(row)]
    wrong = [finding for finding in findings if not finding.ok]
    summary = f"{wrong[0].question} {wrong[0].answer}" if wrong else "you can decide it now"
    return pb.ExplainReviewResponse(summary=summary, findings=findings)


def _state(row: ExplainedReview) -> pb.ReviewFinding:
    asked = "is it open?"
    if row.state == "open":
        return pb.ReviewFinding(
            question=asked,
            ok=True,
            answer=f"yes, since {_at(row.created_at)}",
            next_step="SubmitReview decides it; ClaimReview keeps it for you while you look",
        )
    if row.state == "withdrawn":
        return pb.ReviewFinding(
            question=asked,
            answer=f"no, phase {row.phase} was stopped before, at {_at(row.updated_at)}",
            next_step="RetryPhase runs the phase again, which asks again if it isn't sure",
        )
    return pb.ReviewFinding(
        question=asked,
        answer=f"no, it was {row.state.replace('_', ' ')} by {row.decided_by} at"
        f" {_at(row.decided_at or row.updated_at)}",
        next_step="ListReviewDecisions shows who decided what",
    )


def _who(row: ExplainedReview, is_admin: bool) -> pb.ReviewFinding:
    asked = "who may decide it?"
    if is_admin:
        return pb.ReviewFinding(
            question=asked,
            answer=f"persons of {row.owner}; an admin only looks",
            next_step=f"call SubmitReview with a token whose owner is {row.owner}",
        )
    if row.decided_by_actor:
        return pb.ReviewFinding(
            question=asked,
            answer="another person of your owner; you have decided it already",
            next_step="NextReview gives you another review",
        )
    return pb.ReviewFinding(question=asked, ok=True, answer=f"persons of {row.owner}, also you")


def _holder(row: ExplainedReview, actor: str) -> pb.ReviewFinding:
    asked, until = "who has it?", row.claim_expires_at
    if until is None or until <= row.asked_at or not row.claimed_by:
        return pb.ReviewFinding(
            question=asked, ok=True, answer="nobody", next_step="NextReview or ClaimReview takes it"
        )
    if row.claimed_by == actor:
        return pb.ReviewFinding(
            question=asked,
            ok=True,
            answer=f"you, until {_at(until)}",
            next_step="ClaimReview extends that, ReleaseReview gives it back",
        )
    return pb.ReviewFinding(
        question=asked,
        answer=f"{row.claimed_by}, until {_at(until)}",
        next_step=f"wait until then, or {row.claimed_by} gives it back with ReleaseReview",
    )


def _missing(row: ExplainedReview) -> pb.ReviewFinding:
    asked = "how many decisions are missing?"
    needed, made = row.decisions_needed, row.decisions_made
    most = 2 * needed - 1
    if not made:
        answer = f"{needed}, which have to say the same" if needed > 1 else "one"
    elif row.disputed:
        answer = (
            f"{made} persons decided, and differently; it ends once {needed} say the same, and with"
            f" person {most} at the latest"
        )
    else:
        answer = f"{needed - made} more that say the same as the {made} so far"
    step = "ListReviewDecisions shows what was decided" if made else ""
    return pb.ReviewFinding(question=asked, ok=True, answer=answer, next_step=step)


def _due(row: ExplainedReview) -> pb.ReviewFinding:
    asked = "is it overdue?"
    if row.due_at is None:
        answer = "no, no due time is set"
    elif row.due_at < row.asked_at:
        answer = f"yes, it was due at {_at(row.due_at)}"
    else:
        answer = f"no, it is due at {_at(row.due_at)}"
    return pb.ReviewFinding(question=asked, ok=True, answer=answer)


def _blocks(row: ExplainedReview) -> pb.ReviewFinding:
    asked = "what does it block?"
    if row.state != "open":
        return pb.ReviewFinding(question=asked, ok=True, answer="nothing any more")
    rest = [f"phase {n} ({rules.PHASE_NAMES[n]})" for n in rules.PHASES if n > row.phase]
    if not rest:
        answer = f"product {row.product_id} isn't completed before it is decided"
    else:
        then = "start by themselves" if row.auto_advance else "can be started with StartPhase"
        answer = f"{', '.join(rest)} of product {row.product_id}, which {then} after it"
    return pb.ReviewFinding(question=asked, ok=True, answer=answer)


def _why(row: ExplainedReview) -> pb.ReviewFinding:
    confidence = f"its confidence is {row.model_confidence:.3f}"
    answer = (
        f"as a sample: {confidence}, which is enough, and a share of such results is looked at"
        if row.sample
        else f"{confidence}, which was below the threshold; `evidence` has what it follows from"
    )
    return pb.ReviewFinding(question="why was it opened?", ok=True, answer=answer)


def _at(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
