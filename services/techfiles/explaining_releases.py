"""ExplainRelease: shows each condition that decides where a release stands, as a question with its
answer."""

from collections.abc import Iterator, Sequence

from atelier.techfiles.v1 import release_pb2 as pb

from services.techfiles import release_rows
from services.techfiles.export_rows import Export
from services.techfiles.release_rows import SELECT_DOCUMENTS, SELECT_LATEST, Release
from shared.database.db import Database
from shared.rpc import auth


class Explaining:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def explain(self, row: Release) -> pb.ExplainReleaseResponse:
        documents = await self._db.all(SELECT_DOCUMENTS, {"id": row.id})
        product = {"owner": row.owner, "product_id": row.product_id}
        latest = await self._db.first(SELECT_LATEST, product)
        by_another = self._db.settings.release_by_another
        findings = [
            *_of_itself(row),
            _of_documents(row, documents),
            _of_order(row, latest.number if latest else None),
            _of_decision(row, by_another=by_another),
            _of_sources(row),
        ]
        bad = next((each for each in findings if not each.ok), None)
        summary = f"{row.title} is {row.state}: {next_step(row, documents)}"
        if bad:
            summary = bad.answer if not bad.next_step else f"{bad.answer} {bad.next_step}."
        return pb.ExplainReleaseResponse(
            release=release_rows.to_proto(row), summary=summary, findings=findings
        )


def next_step(row: Release, documents: Sequence[Export]) -> str:
    """Returns the call to make next, in words."""
    if any(each.state in ("pending", "processing") for each in documents):
        return "wait for its documents: GetRelease shows them with their URLs"
    if any(each.state == "failed" for each in documents):
        return "MakeReleaseDocuments makes what failed again"
    return {
        "draft": "look at its document, then call ApproveRelease or RejectRelease",
        "approved": "send its documents; GetRelease has their URLs",
        "rejected": "CreateRelease makes another one of the collection as it is then",
        "withdrawn": "CreateRelease makes another one, to produce by",
    }[row.state]


def _finding(
    question: str, answer: str, *, ok: bool = True, who: str = "nobody", next: str = ""
) -> pb.ReleaseFinding:
    return pb.ReleaseFinding(question=question, answer=answer, ok=ok, who=who, next_step=next)


def _of_itself(row: Release) -> Iterator[pb.ReleaseFinding]:
    if row.deleted_at and row.expires_at:
        yield _finding(
            "is it in lists?",
            f"It is in the trash, and purged at {row.expires_at:%Y-%m-%d %H:%M} UTC.",
            ok=False,
            who="you",
            next="UndeleteRelease takes it out",
        )
    else:
        yield _finding("is it in lists?", "It is.")


def _of_documents(row: Release, documents: Sequence[Export]) -> pb.ReleaseFinding:
    question = "are its documents made?"
    mine = [each for each in documents if each.draft == (row.number is None)]
    failed = next((each for each in mine if each.state == "failed"), None)
    if any(each.state in ("pending", "processing") for each in mine):
        answer = "Not yet: a worker makes them."
        return _finding(question, answer, ok=False, who="a worker", next="GetRelease shows them")
    if failed or any(not each.has_bytes for each in mine) or not mine:
        answer = f"No: {failed.error_message}." if failed else "No: the store lost their bytes."
        call = "MakeReleaseDocuments makes them again"
        return _finding(question, answer, ok=False, who="you", next=call)
    named = ", ".join(sorted(each.format.upper() for each in mine))
    return _finding(question, f"Yes: {named}.")


def _of_decision(row: Release, *, by_another: bool) -> pb.ReleaseFinding:
    question = "is it approved?"
    if row.state == "draft":
        mine = by_another and auth.current().actor == row.created_by
        if mine:
            answer = f"Not yet; {row.created_by} made it, so another person has to approve it."
        else:
            answer = "Not yet; nobody has decided."
        call = "ApproveRelease or RejectRelease decides"
        who = "another person" if mine else "you"
        return _finding(question, answer, ok=False, who=who, next=call)
    words = f": {row.decision_note}" if row.decision_note else ""
    if row.state == "rejected":
        answer = f"No: {row.decided_by} rejected it{words}."
        return _finding(question, answer, ok=False, next="CreateRelease makes another one")
    if row.state == "withdrawn":
        answer = f"It was, and {row.withdrawn_by} withdrew it: {row.withdraw_reason}."
        return _finding(question, answer, ok=False, next="CreateRelease makes another one")
    return _finding(question, f"Yes, as release {row.number}, by {row.decided_by}{words}.")


def _of_order(row: Release, latest: int | None) -> pb.ReleaseFinding:
    question = "what is it compared with?"
    with_what = f"release {row.previous_number}" if row.previous_number else "nothing"
    answer = f"With {with_what}."
    if row.state == "draft" and latest != row.previous_number:
        now = f"release {latest} was approved" if latest else "that was withdrawn"
        answer = f"With {with_what}, but {now} since; it can't be approved any more."
        call = "CreateRelease makes a draft that is compared with the latest release"
        return _finding(question, answer, ok=False, who="you", next=call)
    if row.state == "approved" and latest != row.number:
        return _finding(question, f"{answer} Release {latest} came after it.")
    return _finding(question, answer)


def _of_sources(row: Release) -> pb.ReleaseFinding:
    question = "is something in it merely found by a model?"
    if not row.merely_found_count:
        return _finding(question, "No.")
    first = row.merely_found[0]
    answer = f"Yes, {row.merely_found_count} values, such as {first['key']} ({first['where']})."
    return _finding(question, answer, next="UpdateCollectionFacts states them for the next release")
