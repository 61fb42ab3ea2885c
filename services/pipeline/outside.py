"""The phases that wait for outside runners, and the runners of the deployment, which serve every
owner: owners take turns.

Everything works in an open transaction and never commits, but for `act_for_claimed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from services.pipeline import rules
from services.pipeline.phase_rows import PHASES, LockedPhase
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls, errors

_CLAIMING = b"SELECT set_config('app.claiming', $1, true)"
# What a runner may claim: it is due, or its runner let the lease pass, and nobody has paused it.
_CLAIMABLE = """
    p.external AND p.number = ANY(%(numbers)s) AND p.state IN ('pending', 'running')
        AND ((p.state = 'pending' AND p.started) OR (p.state = 'running'
            AND p.lease_expires_at < now() AND p.attempt_number < %(most)s))
        AND NOT EXISTS (SELECT FROM phase_pauses s
            WHERE s.phase = p.number AND (s.ends_at IS NULL OR s.ends_at > now()))
"""
# The phase of the oldest product. Skips rows that others have locked, because they are claiming
# them.
_LOCK_NEXT = Statement(
    LockedPhase,
    f"""
    SELECT {PHASES.of("p")} FROM phases p JOIN products r ON r.id = p.product_id
    WHERE p.owner = %(owner)s AND r.deleted_at IS NULL AND {_CLAIMABLE}
    ORDER BY p.created_at, p.id LIMIT 1 FOR UPDATE OF p SKIP LOCKED
    """,
)
# The owners whose phases wait for outside runners, the one first that was served longest ago.
_SELECT_TURNS = Statement(
    str,
    f"""
    SELECT owner FROM (SELECT DISTINCT p.owner FROM phases p WHERE {_CLAIMABLE}) AS waiting
        LEFT JOIN outside_turns USING (owner)
    ORDER BY claimed_at NULLS FIRST, owner LIMIT 20
    """,
)
_SELECT_CLAIMED = Statement(
    str,
    """
    SELECT a.owner FROM attempts a JOIN phases p ON p.id = a.job_id
    WHERE a.id = %(token)s AND a.worker = %(worker)s AND p.external
        AND p.product_id = %(product_id)s AND p.number = %(number)s
    """,
)
# The clock's time and not the transaction's: claims that began together still take turns.
_TAKE_TURN = Command("""
    INSERT INTO outside_turns (owner, claimed_at) VALUES (%(owner)s, clock_timestamp())
    ON CONFLICT (owner) DO UPDATE SET claimed_at = clock_timestamp()
""")


class ClaimedRequest(Protocol):
    """A request of the runner that has claimed the phase."""

    product_id: str
    phase: int
    attempt_token: str


def of_deployment() -> bool:
    """Returns whether the caller is a runner of the deployment, which serves every owner."""
    return auth.current().role == "service"


def act_for(owner: str) -> None:
    """Lets a runner of the deployment act for an owner, for the rest of the call."""
    auth.enter(replace(calls.owner_identity(owner), actor=auth.current().actor))


async def act_for_claimed(db: Database, request: ClaimedRequest) -> None:
    """Lets a runner of the deployment act for the owner of the phase that it claimed, for the rest
    of the call. Raises NOT_FOUND if it didn't make this claim."""
    if not of_deployment():
        return
    named = {
        "token": UUID(request.attempt_token),
        "worker": f"outside:{auth.current().actor}",
        "product_id": UUID(request.product_id),
        "number": request.phase,
    }
    async with db.transaction("") as m:
        owners = await _claiming(m, _SELECT_CLAIMED, named)
    if not owners:
        raise errors.not_found("product", request.product_id)
    act_for(owners[0])


async def lock_next(m: Mutation, phases: Sequence[int]) -> LockedPhase | None:
    """Locks the owner's phase that is to be claimed next and returns it, or None if none waits.
    `phases`: the numbers that will do; none: any."""
    return await m.first(_LOCK_NEXT, {"owner": m.owner, **_wanted(phases)})


async def owners_in_turn(m: Mutation, phases: Sequence[int]) -> Sequence[str]:
    """Returns owners whose phases wait for outside runners, in the order of their turns."""
    return await _claiming(m, _SELECT_TURNS, _wanted(phases))


async def take_turn(m: Mutation) -> None:
    """Notes that the owner was served now."""
    await m.run(_TAKE_TURN, {"owner": m.owner})


def _wanted(phases: Sequence[int]) -> dict[str, object]:
    return {"numbers": list(phases or rules.PHASES), "most": rules.MAX_ATTEMPTS}


async def _claiming(
    m: Mutation, statement: Statement[str], parameters: Mapping[str, object]
) -> list[str]:
    """Runs a statement that reads the owners of claimable phases, and nothing else."""
    m.send(_CLAIMING, "on")
    owners = await m.all(statement, parameters)
    m.send(_CLAIMING, "off")
    return owners
