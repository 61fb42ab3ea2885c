"""ExplainTechPackRun: each condition that keeps a run from its result, as a question with its
answer: what is waited for, who must act, and what to call."""

from collections.abc import Iterator, Mapping, Sequence

from atelier.techfiles.v1 import tech_pack_pb2 as pb

from services.techfiles import rules
from services.techfiles.export_rows import Export
from services.techfiles.pack_rows import Run, RunStep
from services.techfiles.rules import Step

_YOU, _WORKER, _OUTSIDE = "you", "a worker", "an outside worker"
_OPERATOR = "the operator"
_WATCH = "follow it with WatchTechPackRun"
_JOBS = "conversions.v1.JobService.ExplainJob"


def next_step(run: Run, archive: Export | None) -> str:
    """Returns what a caller does after a call that answered with this run; '' if nothing."""
    if run.state not in rules.ENDED:
        return going_on(str(run.id))
    if run.state != "completed":
        return f"RetryTechPackRun of {run.id} runs again what failed; ExplainTechPackRun says what"
    if run.zip_export_id and archive is None:
        return "its ZIP was purged; ExportCollection makes another one"
    if run.make_zip and (archive is None or archive.state not in rules.ENDED):
        return f"the ZIP is being made: call GetTechPackRun of {run.id} with include_urls"
    return ""


def going_on(run_id: str) -> str:
    """Returns what a caller does after a call that began a run or waited for one in vain."""
    return (
        "the run goes on: repeat this call with the same request_id and `wait`, or follow it with"
        f" WatchTechPackRun of {run_id}; ExplainTechPackRun says what it waits for; an export of"
        " its collection is incomplete until then"
    )


def of_export(export: Export) -> str:
    """Returns what a caller does after a call that answered with this export; '' if nothing."""
    if export.state not in rules.ENDED:
        return (
            "the export goes on: repeat this call with the same request_id and `wait`, or call"
            f" GetExport of {export.id}"
        )
    if export.incomplete:
        return "a run filled the collection meanwhile; export it again when that run has ended"
    return ""


def findings(
    run: Run,
    steps: Sequence[Step],
    moves: Mapping[str, RunStep],
    archive: Export | None,
    said: Mapping[str, str],
) -> list[pb.RunFinding]:
    """Answers the questions about a run. `said`: what `conversions` says about jobs, by their
    ids."""
    made = [_state(run)]
    if run.cancel_requested and run.state not in rules.ENDED:
        made.append(
            pb.RunFinding(
                question="was it asked to stop?",
                answer="yes; a worker cancels its jobs and ends it within seconds",
                who=_WORKER,
                next_step=_WATCH,
            )
        )
    made += [_step(run, step, moves, said) for step in steps]
    if run.make_zip:
        made.append(_zip(run, archive))
    return made


def summary(run: Run, found: Sequence[pb.RunFinding]) -> str:
    wrong = [finding for finding in found if not finding.ok]
    if not wrong:
        return "every step is done, and the pack is there"
    first = next((finding for finding in wrong if finding.who), wrong[0])
    return f"it is {run.state.upper()}: {first.question} {first.answer}"


def _state(run: Run) -> pb.RunFinding:
    question = "has it ended?"
    match run.state:
        case "completed":
            return pb.RunFinding(question=question, ok=True, answer="yes, and nothing failed")
        case "completed_with_failures" | "failed" | "cancelled":
            reason = f": {run.error_message}" if run.error_message else ""
            return pb.RunFinding(
                question=question,
                answer=f"yes, it is {run.state.upper()}{reason}",
                who=_YOU,
                next_step="RetryTechPackRun runs again what failed, and nothing else",
            )
        case "processing":
            return pb.RunFinding(
                question=question, answer="no, a worker is on it", who=_WORKER, next_step=_WATCH
            )
    if not run.waits_for:
        return pb.RunFinding(
            question=question,
            answer="no, it waits for its turn with a worker",
            who=_WORKER,
            next_step=f"{_WATCH}; if it doesn't begin, the operator looks for workers of techfiles",
        )
    since = f" since {run.waiting_since:%Y-%m-%d %H:%M} UTC" if run.waiting_since else ""
    outside = run.waits_for == _OUTSIDE
    return pb.RunFinding(
        question=question,
        answer=f"no, it waits for {run.waits_for}{since}: {run.error_message}",
        who=_OUTSIDE if outside else _OPERATOR,
        next_step=(
            "an outside worker takes its jobs with conversions.v1.JobService.ClaimJob"
            if outside
            else "nothing: it goes on by itself as soon as that is back"
        ),
    )


def _step(
    run: Run, step: Step, moves: Mapping[str, RunStep], said: Mapping[str, str]
) -> pb.RunFinding:
    move = moves[step.name]
    finding = pb.RunFinding(question=f"is {step.name} done?", step=step.name)
    match move.state:
        case "completed":
            finding.ok, finding.answer = True, f"yes, for {move.credits} credits"
        case "skipped":
            finding.ok = True
            finding.answer = f"it is skipped: {move.error_message or 'the request says so'}"
        case "failed":
            finding.answer = f"no: {move.error_class}: {move.error_message}"
            if run.state in rules.ENDED:
                finding.who, finding.next_step = _YOU, "RetryTechPackRun runs it again"
        case "processing":
            _explain_jobs(run, move, finding, said)
        case _:
            before = [name for name in _open(moves) if name != step.name]
            last = step.kind == "complete_pack" and before
            finding.answer = (
                f"no, it comes after {len(before)} other steps" if last else "no, it hasn't begun"
            )
    return finding


def _explain_jobs(run: Run, move: RunStep, finding: pb.RunFinding, said: Mapping[str, str]) -> None:
    jobs = [job for job in (move.analysis_id, move.generation_id) if job]
    named = " and ".join(jobs)
    if not jobs:
        finding.answer, finding.who = "no, a worker makes it", _WORKER
    elif run.run_externally:
        finding.answer = f"no, it waits until an outside worker has done {named}"
        finding.who = _OUTSIDE
        finding.next_step = (
            "an outside worker calls conversions.v1.JobService.ClaimJob, then CompleteJob;"
            f" {_JOBS} says how far a job is"
        )
    else:
        finding.answer = f"no, conversions works on {named}"
        finding.who = _WORKER
        finding.next_step = f"{_JOBS} of it says how far it is"
    for job in jobs:
        if job in said:
            finding.answer += f". {job}: {said[job]}"


def _open(moves: Mapping[str, RunStep]) -> Iterator[str]:
    return (name for name, move in moves.items() if rules.STEP_STATES[move.state])


def _zip(run: Run, archive: Export | None) -> pb.RunFinding:
    question = "is the ZIP there?"
    if archive is None and run.zip_export_id:
        return pb.RunFinding(
            question=question,
            answer="no, it was purged",
            who=_YOU,
            next_step="ExportCollection makes another one",
        )
    if archive is None:
        over = run.state in rules.ENDED
        return pb.RunFinding(
            question=question,
            answer="no, the run ended before its PDF was made" if over else "no, it comes last",
            who=_YOU if over else "",
            next_step="RetryTechPackRun, or ExportCollection" if over else "",
        )
    if archive.state == "completed":
        return pb.RunFinding(question=question, ok=True, answer="yes")
    if archive.state == "failed":
        return pb.RunFinding(
            question=question,
            answer=f"no: {archive.error_class}: {archive.error_message}",
            who=_YOU,
            next_step="ExportCollection makes another one",
        )
    waits = f"; it waits for {archive.waits_for}" if archive.waits_for else ""
    return pb.RunFinding(
        question=question,
        answer=f"no, a worker makes it{waits}",
        who=_WORKER,
        next_step=f"GetExport of {archive.id}",
    )
