"""Sends due deliveries. A claim lasts for an attempt's timeout plus a lease. If a worker dies
between sending and recording, the delivery is sent again with the same id.

An endpoint has at most one runner per worker process, which sends 4 deliveries at once; an owner
has at most 4 runners and a process 64. An endpoint gives up its runner when a delivery fails, and
the next endpoint is chosen at random. So a receiver that is slow or down delays only its own
deliveries, or, if there are as many such receivers as runners, others by an attempt or two.

A receiver that refuses a delivery may send Retry-After. Its endpoint then gets nothing until that
time, at most 8 hours. Retry-After neither shortens a delivery's own pause nor ends its retries.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog

from shared.background.events import POLL_SECONDS
from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.database.exchange import Parameters
from shared.database.rows import Command, Statement
from shared.outbound import Outbound, OutboundFailed, OutboundRefused
from shared.settings import Settings
from shared.webhooks.signing import signed_headers

AT_ONCE = 4  # deliveries to one endpoint
OF_OWNER = 4  # endpoints of one owner
RUNNERS = 64
_ROUNDS = 100  # claims per runner; then another endpoint gets it
_FACTOR = 4
_LONGEST_PAUSE_SECONDS = 8 * 3600.0
_GONE = 410
_log = structlog.get_logger("webhooks")


@dataclass(slots=True)
class _DueEndpoint:
    id: UUID
    owner: str


@dataclass(slots=True)
class _Claim:
    """A delivery that this worker may send until its lease ends."""

    id: UUID
    owner: str
    endpoint_id: UUID
    body: str
    attempts: int
    attempts_in_turn: int
    url: str
    at: datetime
    secrets: list[str]


_SELECT_DUE_ENDPOINTS = Statement(
    _DueEndpoint,
    """
    SELECT e.id, e.owner FROM webhook_endpoints e
    WHERE e.state = 'enabled' AND e.id <> ALL(%(busy)s) AND e.owner <> ALL(%(full)s)
      AND (e.paused_until IS NULL OR e.paused_until <= now()) AND EXISTS (
        SELECT FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_attempt_at <= now())
    ORDER BY random() LIMIT %(limit)s
    """,
)
_CLAIM_DELIVERIES = Statement(
    _Claim,
    """
    WITH endpoint AS (
        SELECT id, url FROM webhook_endpoints
        WHERE id = %(endpoint_id)s AND state = 'enabled'
          AND (paused_until IS NULL OR paused_until <= now())
    ), due AS (
        SELECT d.id FROM webhook_deliveries d, endpoint
        WHERE d.endpoint_id = endpoint.id AND d.state = 'pending' AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at, d.id LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d
    SET attempts = d.attempts + 1, attempts_in_turn = d.attempts_in_turn + 1,
        last_attempt_at = now(), next_attempt_at = now() + %(lease)s::interval
    FROM due, endpoint WHERE d.id = due.id
    RETURNING d.id, d.owner, d.endpoint_id, d.body, d.attempts, d.attempts_in_turn, endpoint.url,
        now() AS at,
        ARRAY(SELECT s.secret FROM webhook_secrets s
              WHERE s.owner = d.owner AND s.endpoint_id = d.endpoint_id
              AND (s.expires_at IS NULL OR s.expires_at > now())
              ORDER BY s.version DESC) AS secrets
    """,
)
# Locks the endpoint before the delivery, in the same order as enabling, replaying and deleting.
_HOLD_ENDPOINT = Command(
    "SELECT id FROM webhook_endpoints WHERE id = %(endpoint_id)s FOR NO KEY UPDATE"
)
_SET_DELIVERED = Command("""
    UPDATE webhook_deliveries
    SET state = 'delivered', next_attempt_at = NULL, ended_at = now(), status_code = %(status)s,
        error_class = '', error_message = '', response_excerpt = %(excerpt)s
    WHERE id = %(id)s AND attempts = %(attempts)s AND state = 'pending'
""")
_SET_ENDPOINT_WELL = Command("""
    UPDATE webhook_endpoints SET failing_since = NULL, last_error_class = ''
    WHERE id = %(endpoint_id)s AND failing_since IS NOT NULL
""")
# Returns true if the delivery has failed for good.
_SET_NOT_DELIVERED = Statement(
    bool,
    """
    WITH decided AS (
        SELECT id, now() + %(pause)s::interval > turn_began_at + %(give_up)s::interval AS over
        FROM webhook_deliveries
        WHERE id = %(id)s AND attempts = %(attempts)s AND state = 'pending'
    )
    UPDATE webhook_deliveries d
    SET state = CASE WHEN over THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN over THEN now() END,
        next_attempt_at = CASE WHEN over THEN NULL
                               ELSE now() + greatest(%(pause)s::interval, %(asked)s::interval) END,
        status_code = %(status)s, error_class = %(error_class)s,
        error_message = %(error_message)s, response_excerpt = %(excerpt)s
    FROM decided WHERE d.id = decided.id RETURNING decided.over
    """,
)
# Disables the endpoint if it answered 410, or if a delivery has failed for good and none arrived
# for as long: then the receiver no longer exists. Returns the endpoint's state.
_SET_ENDPOINT_FAILING = Statement(
    str,
    """
    WITH decided AS (
        SELECT id, CASE WHEN %(gone)s THEN 'gone'
                        WHEN %(over)s AND failing_since < now() - %(give_up)s::interval
                            THEN 'failing'
                        ELSE '' END AS reason
        FROM webhook_endpoints WHERE id = %(endpoint_id)s AND state = 'enabled'
    )
    UPDATE webhook_endpoints e
    SET failing_since = coalesce(failing_since, now()), last_error_class = %(error_class)s,
        paused_until = CASE WHEN %(asked)s::interval > interval '0'
                                THEN greatest(paused_until, now() + %(asked)s::interval)
                            ELSE paused_until END,
        state = CASE WHEN reason = '' THEN 'enabled' ELSE 'disabled' END, disable_reason = reason,
        disabled_at = CASE WHEN reason = '' THEN NULL ELSE now() END,
        version = e.version + CASE WHEN reason = '' THEN 0 ELSE 1 END,
        updated_at = CASE WHEN reason = '' THEN e.updated_at ELSE now() END
    FROM decided WHERE e.id = decided.id RETURNING e.state
    """,
)
_DELETE_OLD_DELIVERIES = Statement(
    int,
    """
    DELETE FROM webhook_deliveries WHERE id = ANY (ARRAY(
        SELECT id FROM webhook_deliveries WHERE ended_at < now() - %(age)s::interval
        UNION ALL
        SELECT d.id FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
        WHERE d.state = 'pending' AND e.disabled_at < now() - %(age)s::interval
        LIMIT %(chunk)s))
    RETURNING 1
    """,
)


@dataclass(frozen=True)
class _Outcome:
    status: int = 0
    error_class: str = ""
    error_message: str = ""
    excerpt: str = ""
    asked: float = 0.0  # the pause in seconds that the receiver asked for


class Sender:
    def __init__(self, db: Database, settings: Settings, out: Outbound) -> None:
        self._db = db
        self._out = out
        self._timeout = settings.webhook_timeout_seconds
        self._lease = timedelta(seconds=self._timeout + settings.job_lease_seconds)
        self._first_pause = settings.webhook_first_retry_seconds
        self._give_up = timedelta(hours=settings.webhook_give_up_hours)
        self._running: dict[UUID, str] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Gives each endpoint with due deliveries a runner, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while not_cancelled():
                self._wake.clear()
                try:
                    for endpoint in await self._due():
                        self._running[endpoint.id] = endpoint.owner
                        group.create_task(self._serve(endpoint.id, endpoint.owner))
                except (psycopg.Error, TimeoutError) as error:
                    _log.warning(
                        "webhooks wait for the database",
                        service=self._db.service,
                        error=type(error).__name__,
                    )
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _due(self) -> list[_DueEndpoint]:
        free = RUNNERS - len(self._running)
        if not free:
            return []
        of_owner = Counter(self._running.values())
        full = [owner for owner, count in of_owner.items() if count >= OF_OWNER]
        found = []
        for endpoint in await self._db.system_all(
            _SELECT_DUE_ENDPOINTS, {"busy": list(self._running), "full": full, "limit": free}
        ):
            of_owner[endpoint.owner] += 1
            if of_owner[endpoint.owner] <= OF_OWNER:
                found.append(endpoint)
        return found

    async def _serve(self, endpoint_id: UUID, owner: str) -> None:
        """Sends an endpoint's due deliveries, a few at once, until one fails. Starts another
        whenever one ends."""
        sending: set[asyncio.Task[bool]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_ROUNDS):
                    claimed = await self._claim(endpoint_id, owner, AT_ONCE - len(sending))
                    sending |= {group.create_task(self._attempt(delivery)) for delivery in claimed}
                    if not sending:
                        return
                    # Others may become due while slow ones are being sent.
                    ended, sending = await asyncio.wait(
                        sending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not all(task.result() for task in ended):
                        return
        finally:
            del self._running[endpoint_id]
            self._wake.set()

    async def _claim(self, endpoint_id: UUID, owner: str, limit: int) -> list[_Claim]:
        try:
            async with self._db.transaction(owner) as m:
                return await m.all(
                    _CLAIM_DELIVERIES,
                    {"endpoint_id": endpoint_id, "limit": limit, "lease": self._lease},
                )
        except (psycopg.Error, TimeoutError) as error:
            _log.warning(
                "webhooks wait for the database",
                service=self._db.service,
                error=type(error).__name__,
            )
            return []

    async def _attempt(self, delivery: _Claim) -> bool:
        """Sends a delivery and records the outcome. Returns whether it arrived."""
        try:
            outcome = await self._send(delivery)
            await self._record(delivery, outcome)
            return not outcome.error_class
        except Exception as error:  # it is sent again when its lease ends
            _log.error(
                "webhook could not be recorded",
                service=self._db.service,
                delivery=str(delivery.id),
                error=type(error).__name__,
            )
            return False

    async def _send(self, delivery: _Claim) -> _Outcome:
        body = delivery.body.encode()
        headers = signed_headers(delivery.secrets, str(delivery.id), delivery.at, body)
        try:
            answer = await self._out.post(delivery.url, body, headers, timeout=self._timeout)
        except OutboundRefused as refusal:
            return _Outcome(error_class="REFUSED", error_message=str(refusal))
        except OutboundFailed as failure:
            return _Outcome(error_class=failure.error_class, error_message=failure.text)
        excerpt = "".join(
            c for c in answer.excerpt.decode("utf-8", "replace") if c.isprintable() or c == "\n"
        )
        if 200 <= answer.status < 300:
            return _Outcome(answer.status, excerpt=excerpt)
        text = f"the receiver answered {answer.status}; only 200 to 299 count as received"
        asked = min(answer.retry_after, _LONGEST_PAUSE_SECONDS)
        if asked:
            text += f". It asked for a pause, and gets one of {asked:.0f} s"
        return _Outcome(answer.status, "STATUS", text, excerpt, asked)

    async def _record(self, delivery: _Claim, outcome: _Outcome) -> None:
        pause = min(
            self._first_pause * _FACTOR ** (delivery.attempts_in_turn - 1), _LONGEST_PAUSE_SECONDS
        )
        parameters: dict[str, object] = {
            "id": delivery.id,
            "endpoint_id": delivery.endpoint_id,
            "attempts": delivery.attempts,
            "status": outcome.status,
            "error_class": outcome.error_class,
            "error_message": outcome.error_message,
            "excerpt": outcome.excerpt,
            "give_up": self._give_up,
            "gone": outcome.status == _GONE,
            "asked": timedelta(seconds=outcome.asked),
            # Randomised, so that deliveries that failed together aren't retried together.
            "pause": timedelta(seconds=pause * random.uniform(0.9, 1.1)),
        }
        async with self._db.transaction(delivery.owner) as m:
            await m.run(_HOLD_ENDPOINT, parameters)
            if not outcome.error_class:
                await m.run(_SET_DELIVERED, parameters)
                await m.run(_SET_ENDPOINT_WELL, parameters)
                return
            over = await m.first(_SET_NOT_DELIVERED, parameters)
            if over is None:
                return  # another attempt has claimed the delivery, or it is deleted
            state = await m.first(_SET_ENDPOINT_FAILING, {**parameters, "over": over})
        if state == "disabled":
            _log.warning(
                "webhook endpoint disabled",
                service=self._db.service,
                endpoint=str(delivery.endpoint_id),
                error=outcome.error_class,
                status=outcome.status,
            )


async def prune(db: Database, settings: Settings, chunk: int = 5000) -> int:
    """Deletes, in chunks, deliveries past their retention and pending ones of endpoints that have
    been disabled for as long. Returns how many it deleted."""
    total = 0
    age: Parameters = {"age": timedelta(days=settings.webhook_log_days), "chunk": chunk}
    while True:
        async with db.transaction("") as m:
            deleted = await m.all(_DELETE_OLD_DELIVERIES, age)
        total += len(deleted)
        if len(deleted) < chunk:
            return total
