"""Consents: the row, its message, and the statements that change it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypedDict
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import consent_pb2 as pb
from psycopg.types.json import Jsonb

from shared.background import events
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp

PURPOSES = EnumNames(pb.ConsentPurpose, "CONSENT_PURPOSE_")
ERASURES = EnumNames(pb.ErasureState, "ERASURE_STATE_")
STATES = EnumNames(pb.ConsentState, "CONSENT_STATE_")

HELD_SHOWN, HOLDERS_SHOWN = 100, 20
ERASE_TASK = "erase_consents"
"""The job that erases what was derived from the photograph of a revoked consent."""


class HeldPicture(TypedDict):
    """A picture that couldn't be purged, as it is stored."""

    asset_id: str
    holders: list[str]


@dataclass(slots=True)
class Consent:
    id: UUID
    owner: str
    created_by: str
    version: int
    asset_id: UUID
    purpose: str
    wording_version: str
    wording: str
    given_by: str
    given_at: datetime
    expires_at: datetime
    note: str
    expiry_told: bool
    revoked_at: datetime | None
    erasure: str | None  # the state of the erasure; None: it wasn't revoked
    erase_photo: bool
    jobs_cancelled: int
    pictures_purged: int
    analyses_emptied: int
    photo_purged: bool
    pictures_held: int
    held: list[HeldPicture]  # the first HELD_SHOWN
    erased_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def state(self) -> str:
        """Returns the state by this process's clock. Whether a job may run is decided by that of
        the database."""
        if self.revoked_at:
            return "revoked"
        return "active" if self.expires_at > datetime.now(UTC) else "expired"


class LockedConsent(Consent):
    """A row that is locked until the transaction ends."""

    __slots__ = ()


CONSENTS = Table("consents", LockedConsent)
SELECT_CONSENT = Statement(Consent, f"SELECT {CONSENTS.columns} FROM consents WHERE id = %(id)s")
SELECT_NAMED = Statement(
    Consent, f"SELECT {CONSENTS.columns} FROM consents WHERE id = ANY(%(ids)s) ORDER BY id"
)
_LOCK_CONSENT = Statement(LockedConsent, f"{SELECT_CONSENT.text} FOR UPDATE")
_REVOKE = Statement(
    LockedConsent,
    f"""
    UPDATE consents SET revoked_at = coalesce(revoked_at, now()), erasure = 'running',
        erase_photo = erase_photo OR %(erase_photo)s, erased_at = NULL, version = version + 1,
        updated_at = now()
    WHERE id = %(id)s RETURNING {CONSENTS.columns}
    """,
)
_END_ERASURE = Statement(
    LockedConsent,
    f"""
    UPDATE consents SET erasure = CASE WHEN %(pictures_held)s::int = 0 THEN 'complete' ELSE 'held'
        END, held = %(held)s, pictures_held = %(pictures_held)s, erased_at = now(),
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {CONSENTS.columns}
    """,
)
_NOTE_PHOTO = Statement(
    LockedConsent,
    f"""
    UPDATE consents SET photo_purged = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {CONSENTS.columns}
    """,
)
_TELL_EXPIRY = Statement(
    LockedConsent,
    f"""
    UPDATE consents SET expiry_told = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND NOT expiry_told AND revoked_at IS NULL AND expires_at < now()
    RETURNING {CONSENTS.columns}
    """,
)
_NEW = (
    "id",
    "owner",
    "created_by",
    "asset_id",
    "purpose",
    "wording_version",
    "wording",
    "given_by",
    "given_at",
    "expires_at",
    "note",
)


@cache
def _add(columns: tuple[str, ...]) -> Statement[LockedConsent]:
    """Returns the statement that adds to figures of the receipt."""
    row = CONSENTS.core.c
    values: dict[str, Any] = {name: row[name] + sa.bindparam(name) for name in columns}
    values |= {"version": row.version + sa.literal_column("1"), "updated_at": sa.func.now()}
    one = sa.update(CONSENTS.core).where(row.id == sa.bindparam("row_id"))
    return compiled(CONSENTS.row, one.values(values).returning(*row))


def to_proto(row: Consent) -> pb.Consent:
    return pb.Consent(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        asset_id=str(row.asset_id),
        purpose=PURPOSES.number[row.purpose],
        wording_version=row.wording_version,
        wording=row.wording,
        given_by=row.given_by,
        give_time=timestamp(row.given_at),
        expire_time=timestamp(row.expires_at),
        note=row.note,
        state=STATES.number[row.state],
        revoke_time=timestamp(row.revoked_at),
        erasure=None if row.erasure is None else _receipt(row, row.erasure),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def _receipt(row: Consent, state: str) -> pb.ConsentErasure:
    return pb.ConsentErasure(
        state=ERASURES.number[state],
        jobs_cancelled=row.jobs_cancelled,
        pictures_purged=row.pictures_purged,
        analyses_emptied=row.analyses_emptied,
        pictures_held=row.pictures_held,
        held=[pb.HeldPicture(**each) for each in row.held],
        erase_photo=row.erase_photo,
        photo_purged=row.photo_purged,
        end_time=timestamp(row.erased_at),
    )


async def publish(m: Mutation, row: Consent) -> None:
    await events.publish(m, "consent", row.id, row.version, to_proto(row))


async def record(m: Mutation, columns: Mapping[str, Any]) -> Consent:
    """Inserts a row of the mutation's owner and publishes it."""
    values = {"id": new_id(), "owner": m.owner, "created_by": m.actor, **columns}
    row = await m.one(CONSENTS.insert(*_NEW), values)
    await publish(m, row)
    return row


async def lock(m: Mutation, consent_id: UUID) -> LockedConsent:
    """Returns the owner's row, locked until the commit. Raises NOT_FOUND if there is none."""
    row = await m.first(_LOCK_CONSENT, {"id": consent_id})
    if row is None:
        raise errors.not_found("consent", consent_id)
    return row


async def revoke(m: Mutation, locked: LockedConsent, *, erase_photo: bool) -> Consent:
    """Revokes the consent, or begins its erasure again, and publishes the row."""
    row = await m.one(_REVOKE, {"id": locked.id, "erase_photo": erase_photo})
    await publish(m, row)
    return row


async def add(m: Mutation, consent_id: UUID, **figures: int) -> None:
    """Adds to figures of the receipt and publishes the row."""
    row = await m.one(_add(tuple(figures)), {**figures, "row_id": consent_id})
    await publish(m, row)


async def note_photo_purged(m: Mutation, consent_id: UUID) -> None:
    row = await m.one(_NOTE_PHOTO, {"id": consent_id})
    await publish(m, row)


async def end_erasure(m: Mutation, consent_id: UUID, held: Sequence[HeldPicture]) -> None:
    """Ends the erasure, with the pictures that something holds, and publishes the row."""
    shown = [
        HeldPicture(asset_id=each["asset_id"], holders=each["holders"][:HOLDERS_SHOWN])
        for each in held[:HELD_SHOWN]
    ]
    values = {"id": consent_id, "held": Jsonb(shown), "pictures_held": len(held)}
    await publish(m, await m.one(_END_ERASURE, values))


async def tell_expiry(m: Mutation, consent_id: UUID) -> None:
    """Publishes that a consent expired, once."""
    row = await m.first(_TELL_EXPIRY, {"id": consent_id})
    if row is not None:
        await publish(m, row)
