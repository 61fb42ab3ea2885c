"""Checks that persons agreed to what a job does with their photographs, where the deployment
requires that.

A photograph of a person is an asset of kind USER. The check runs when a job is created, and again
right before a provider or an outside worker is given the photograph: the consent may have expired,
or been revoked, while the job waited. A batch is checked each time that it goes on, and stops once
a consent is revoked even where none is required: the erasure must come to an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import asset_pb2

from services.conversions import rules
from services.conversions.job_rows import ModelJob
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.settings import Settings, WrongSetting

_ASK_AGAIN = "this deployment requires one: record it with RecordConsent, then ask again"
_ITS_OWNER = "its owner can record one with RecordConsent and try the job again"
_RESUME = "record one with RecordConsent and resume the batch, or cancel it"


@dataclass(slots=True)
class _Covering:
    """The consent that covers the use of a photograph the longest. `last_revoked_at`: when one for
    the same use was last revoked."""

    asset_id: UUID
    id: UUID
    revoked_at: datetime | None
    expires_at: datetime
    holds: bool
    last_revoked_at: datetime | None


# Of each photograph a consent that holds, else the newest one that doesn't.
_SELECT_COVERING = Statement(
    _Covering,
    """
    SELECT DISTINCT ON (asset_id) asset_id, id, revoked_at, expires_at, holds, last_revoked_at
    FROM (
        SELECT asset_id, id, revoked_at, expires_at, created_at,
            revoked_at IS NULL AND expires_at > now() AS holds,
            max(revoked_at) OVER (PARTITION BY asset_id) AS last_revoked_at
        FROM consents WHERE owner = %(owner)s AND asset_id = ANY(%(asset_ids)s)
            AND purpose = ANY(%(purposes)s)) AS each
    ORDER BY asset_id, holds DESC, CASE WHEN holds THEN expires_at ELSE created_at END DESC, id
    """,
)
# Nobody revokes these until the commit.
_KEEP = Statement(
    UUID,
    """
    SELECT id FROM consents
    WHERE owner = %(owner)s AND asset_id = ANY(%(asset_ids)s) AND purpose = ANY(%(purposes)s)
        AND revoked_at IS NULL
    ORDER BY id FOR SHARE
    """,
)


def required(settings: Settings) -> frozenset[str]:
    """Returns the tasks that need consent. Raises WrongSetting."""
    try:
        return rules.tasks_named(settings.consent_required)
    except ValueError as problem:
        raise WrongSetting(f"ATELIER_CONSENT_REQUIRED {problem}") from None


class Consents:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._required = required(db.settings)

    async def check(self, task: str, pictures: Sequence[asset_pb2.Asset]) -> list[UUID]:
        """Returns the consents that cover what the task does with the current owner's photographs
        of persons. Raises CONSENT_REQUIRED if one is missing. Where the deployment requires none,
        it returns none and asks nobody."""
        if task not in self._required:
            return []
        kind = asset_pb2.ASSET_KIND_USER
        photos = list(dict.fromkeys(UUID(each.id) for each in pictures if each.kind == kind))
        if not photos:
            return []
        values = _asked(task, photos)
        found = {each.asset_id: each for each in await self._db.all(_SELECT_COVERING, values)}
        for photo in photos:
            consent = found.get(photo)
            if consent is None or not consent.holds:
                raise _missing(task, photo, consent, _ASK_AGAIN)
        return [found[photo].id for photo in photos]

    async def keep(
        self, m: Mutation, task: str, photos: Sequence[UUID], since: datetime
    ) -> dict[UUID, UUID]:
        """Returns the consents that cover what the task does with photographs of persons, by
        photograph, and keeps them from being revoked until the commit. Raises CONSENT_REQUIRED if
        one is missing; where the deployment requires none, if one was revoked since then."""
        if not photos:
            return {}
        values = _asked(task, photos)
        await m.all(_KEEP, values)
        found = {each.asset_id: each for each in await m.all(_SELECT_COVERING, values)}
        for photo in photos:
            consent = found.get(photo)
            if consent and consent.holds:
                continue
            revoked = consent and consent.last_revoked_at and consent.last_revoked_at >= since
            if task in self._required or revoked:
                raise _missing(task, photo, consent, _RESUME)
        if task not in self._required:
            return {}
        return {photo: consent.id for photo, consent in found.items()}


async def check_unrevoked(m: Mutation, row: ModelJob) -> None:
    """Raises CONSENT_REQUIRED if a person revoked the consent to what a job does and none covers it
    now, whether this deployment requires one or not."""
    pictures = [each.asset_id for each in row.inputs()]
    for consent in await m.all(_SELECT_COVERING, _asked(row.model_task, pictures)):
        if consent.last_revoked_at and not consent.holds:
            raise _missing(row.model_task, consent.asset_id, consent, _ITS_OWNER)


def _asked(task: str, photos: Sequence[UUID]) -> dict[str, object]:
    purpose = rules.PURPOSES[rules.noun_of(task)]
    return {
        "owner": auth.current().owner,
        "asset_ids": list(photos),
        "purposes": [purpose, rules.ALL_PURPOSES],
    }


def _missing(task: str, photo: UUID, consent: _Covering | None, help_: str) -> DomainError:
    purpose = rules.PURPOSES[rules.noun_of(task)]
    if consent is None:
        what = f"the person in asset {photo} has given no consent that covers {purpose}"
    elif consent.revoked_at:
        what = (
            f"the consent that covers {purpose} with asset {photo} was revoked at"
            f" {consent.revoked_at:%Y-%m-%d %H:%M} UTC"
        )
    else:
        what = (
            f"the consent that covers {purpose} with asset {photo} expired at"
            f" {consent.expires_at:%Y-%m-%d %H:%M} UTC"
        )
    return errors.precondition(
        f"{what}; {help_}",
        subject=f"assets/{photo}",
        reason=Reason.ERROR_REASON_CONSENT_REQUIRED,
        metadata={"asset_id": str(photo), "purpose": purpose},
    )
