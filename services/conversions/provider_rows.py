"""Providers of models in the database: how they are doing, the routes of owners, and the record of
every call."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.conversions.v1 import provider_pb2 as pb

from services.conversions.job_kinds import KINDS
from shared.database.db import Mutation
from shared.database.rows import Command, Statement, Table
from shared.rpc.protos import EnumNames, struct, timestamp

CALL_STATES = EnumNames(pb.ProviderCallState, "PROVIDER_CALL_STATE_")
CHARGES = EnumNames(pb.ProviderCharge, "PROVIDER_CHARGE_")
OURSELVES = "atelier"  # who switched a provider off, if nobody did


@dataclass(slots=True)
class ProviderStanding:
    """How a provider is doing."""

    name: str
    switched_off: bool
    switched_by: str
    switched_at: datetime | None
    paused_until: datetime | None
    reason: str
    failures: int
    updated_at: datetime


@dataclass(slots=True)
class ProviderRoute:
    owner: str
    task: str
    providers: list[str]
    set_by: str
    updated_at: datetime


@dataclass(slots=True)
class ProviderCall:
    id: UUID
    owner: str
    job: str  # the table of the job
    job_id: UUID
    attempt_id: UUID
    provider: str
    model: str
    task: str
    state: str
    handle: str
    charge: str
    usage: Mapping[str, Any]  # as the provider says it
    error_class: str
    category: str
    created_at: datetime
    ended_at: datetime | None


STANDINGS = Table("providers", ProviderStanding)
ROUTES = Table("provider_routes", ProviderRoute)
CALLS = Table("provider_calls", ProviderCall)


@dataclass(slots=True)
class Availability:
    """Whether a provider may be asked now. `paused_seconds`: for how long it is left alone still; 0
    for not at all."""

    name: str
    switched_off: bool
    paused_seconds: float


SELECT_STANDINGS = Statement(ProviderStanding, f"SELECT {STANDINGS.columns} FROM providers")
SELECT_AVAILABILITY = Statement(
    Availability,
    """
    SELECT name, switched_off, COALESCE(greatest(0, extract(epoch FROM paused_until - now())), 0)
        ::double precision AS paused_seconds
    FROM providers
    """,
)
SELECT_ROUTES = Statement(
    ProviderRoute,
    f"SELECT {ROUTES.columns} FROM provider_routes WHERE owner = %(owner)s ORDER BY task",
)
# What earlier attempts of a job left open.
LOCK_OPEN_CALLS = Statement(
    ProviderCall,
    f"""
    SELECT {CALLS.columns} FROM provider_calls WHERE job_id = %(job_id)s AND ended_at IS NULL
    ORDER BY created_at, id FOR UPDATE
    """,
)
# What providers still do for an owner.
SELECT_GIVEABLE = Statement(
    ProviderCall,
    f"""
    SELECT {CALLS.columns} FROM provider_calls
    WHERE owner = %(owner)s AND ended_at IS NULL AND handle <> ''
    """,
)
END_CALL = Command("""
    UPDATE provider_calls SET state = %(to)s, charge = %(charge)s, usage = usage || %(usage)s,
        error_class = %(error_class)s, category = %(category)s, ended_at = now()
    WHERE id = %(id)s AND ended_at IS NULL
""")
# What an answer costs, of a call that ends when its job does.
ANSWER_CALL = Command("""
    UPDATE provider_calls SET charge = %(charge)s, usage = usage || %(usage)s
    WHERE id = %(id)s AND ended_at IS NULL
""")
SUBMIT_CALL = Command("""
    UPDATE provider_calls SET state = 'submitted', handle = %(handle)s
    WHERE id = %(id)s AND ended_at IS NULL
""")
CALLBACKS = "callbacks"  # the channel on which workers are told of them, behind the service's name


@dataclass(slots=True)
class OpenCall:
    """A call to a provider that hasn't ended."""

    id: UUID
    job_id: UUID


# Handles are paths that end with the provider's id of the call, or that id.
SELECT_OPEN_CALL = Statement(
    OpenCall,
    """
    SELECT id, job_id FROM provider_calls WHERE provider = %(provider)s AND ended_at IS NULL
        AND (handle = %(named)s OR right(handle, length(%(named)s) + 1) = '/' || %(named)s)
    ORDER BY created_at DESC LIMIT 1
    """,
)
TELL_WORKERS = Command(f"SELECT pg_notify(current_schema() || '_{CALLBACKS}', %(call_id)s::text)")
# The job may have been put off because its provider couldn't be asked.
START_NOW = Statement(
    int,
    """
    UPDATE procrastinate_jobs SET scheduled_at = now()
    WHERE status = 'todo' AND args ->> 'row_id' = %(job_id)s::text AND scheduled_at > now()
        AND task_name = ANY(%(tasks)s)
    RETURNING id
    """,
)
# A call that was under way has nobody who waits for it any more.
_FORGET_CALLS = Command("""
    UPDATE provider_calls SET handle = '', category = '', ended_at = coalesce(ended_at, now()),
        state = CASE WHEN ended_at IS NULL THEN 'lost' ELSE state END
    WHERE owner = %(owner)s
""")
SWITCH = Statement(
    ProviderStanding,
    f"""
    INSERT INTO providers (name, switched_off, switched_by, switched_at, reason)
    VALUES (%(name)s, %(off)s, %(by)s, now(), %(reason)s)
    ON CONFLICT (name) DO UPDATE SET switched_off = EXCLUDED.switched_off,
        switched_by = EXCLUDED.switched_by, switched_at = now(), reason = EXCLUDED.reason,
        paused_until = NULL, failures = 0, updated_at = now()
    RETURNING {STANDINGS.columns}
    """,
)
# Switches a provider off unless somebody did: the first reason is the one to read.
TRIP = Command("""
    INSERT INTO providers (name, switched_off, switched_by, switched_at, reason)
    VALUES (%(name)s, true, %(by)s, now(), %(reason)s)
    ON CONFLICT (name) DO UPDATE SET switched_off = true, switched_by = EXCLUDED.switched_by,
        switched_at = now(), reason = EXCLUDED.reason, updated_at = now()
    WHERE NOT providers.switched_off
""")
# A failure, and perhaps a pause, which never becomes shorter.
COUNT_FAILURE = Statement(
    int,
    """
    INSERT INTO providers (name, failures) VALUES (%(name)s, 1)
    ON CONFLICT (name) DO UPDATE SET failures = providers.failures + 1, updated_at = now()
    RETURNING failures
    """,
)
PAUSE = Command("""
    INSERT INTO providers (name, paused_until, reason)
    VALUES (%(name)s, now() + make_interval(secs => %(seconds)s), %(reason)s)
    ON CONFLICT (name) DO UPDATE SET reason = EXCLUDED.reason, updated_at = now(),
        paused_until = greatest(providers.paused_until, EXCLUDED.paused_until)
    WHERE NOT providers.switched_off
""")
# A call that was under way when the provider asked for a pause doesn't end the pause.
COUNT_SUCCESS = Command("""
    UPDATE providers SET failures = 0, updated_at = now(),
        paused_until = CASE WHEN paused_until > now() THEN paused_until END,
        reason = CASE WHEN switched_off OR paused_until > now() THEN reason ELSE '' END
    WHERE name = %(name)s AND (failures > 0 OR paused_until < now())
""")


def call_to_proto(row: ProviderCall) -> pb.ProviderCall:
    return pb.ProviderCall(
        id=str(row.id),
        owner=row.owner,
        kind=KINDS[row.job].number,
        job_id=str(row.job_id),
        attempt_id=str(row.attempt_id),
        provider=row.provider,
        model=row.model,
        task=row.task,
        state=CALL_STATES.number[row.state],
        charge=CHARGES.number[row.charge],
        usage=struct(row.usage) if row.usage else None,
        error_class=row.error_class,
        category=row.category,
        handle=row.handle,
        start_time=timestamp(row.created_at),
        end_time=timestamp(row.ended_at),
    )


def route_to_proto(row: ProviderRoute) -> pb.ProviderRoute:
    return pb.ProviderRoute(
        owner=row.owner,
        task=row.task,
        providers=row.providers,
        set_by=row.set_by,
        update_time=timestamp(row.updated_at),
    )


async def forget_calls(m: Mutation) -> None:
    """Forgets of the owner's calls what doesn't say what they may cost: for an erasure."""
    await m.run(_FORGET_CALLS, {"owner": m.owner})
