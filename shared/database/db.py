"""Postgres for the services: pools, tenant context and idempotent mutations.

    rows = await db.all(_SELECT_THINGS, {...})          a read and its tenant context, in one
                                                        round trip
    response = await db.mutate(request, Answer, work)   one transaction: work(m), its events, its
                                                        stored answer
    async with db.transaction(owner) as m: ...          the same for a job, which has no request

Every connection is in autocommit. The tenant is set per transaction (`app.owner_id`), never per
connection, and row-level security reads it. Without a tenant no owner's row is visible. Values are
always bound on the server.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import psycopg
from google.protobuf.message import Message
from psycopg import AsyncCursor
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from shared.database.exchange import Connection, Exchange, Parameters, Reply
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors
from shared.rpc.errors import Reason
from shared.settings import Settings

A = TypeVar("A", bound=Message)
R = TypeVar("R")

_ROLLBACK_SECONDS = 5.0  # after that the connection is closed, which rolls back too
_CONTEXT = b"SELECT set_config('app.owner_id', $1, true)"
_OPERATOR = b"SELECT set_config('app.operator', 'on', true)"
_HOLD_REQUEST = b"SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"


class Request(Protocol):
    """A request that changes something: a message with a request_id."""

    request_id: str

    @property
    def DESCRIPTOR(self) -> Any: ...  # a Descriptor of any protobuf implementation
    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...


@dataclass(slots=True)
class _Stored:
    """The stored answer of a request and the hash of the request's body."""

    body_hash: bytes
    answer: bytes


_SELECT_ANSWER = Statement(
    _Stored,
    """
    SELECT body_hash, answer FROM requests WHERE owner = %(owner)s AND actor = %(actor)s
        AND method = %(method)s AND request_id = %(request_id)s
""",
)
_DELETE_ANSWER = Command("""
    DELETE FROM requests WHERE owner = %(owner)s AND actor = %(actor)s
        AND method = %(method)s AND request_id = %(request_id)s
""")
_DELETE_OLD_ANSWERS = Statement(
    int,
    """
    DELETE FROM requests WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM requests WHERE created_at < now() - %(age)s::interval LIMIT %(chunk)s))
    RETURNING 1
""",
)
_STORE_ANSWER = b"""
    INSERT INTO requests (owner, actor, method, request_id, body_hash, answer) VALUES ($1, $2, $3,
        $4, $5, $6)
"""


@dataclass(slots=True)
class Mutation:
    """An open transaction for one owner. `events.publish` and `jobs.enqueue` take it."""

    exchange: Exchange
    owner: str
    actor: str
    earlier: "_Earlier | None" = None

    async def one(self, statement: Statement[R], parameters: Parameters | None = None) -> R:
        """Returns the one row. Raises LookupError if there is none, which is a bug of ours."""
        return _must(await self.first(statement, parameters), statement)

    async def first(
        self, statement: Statement[R], parameters: Parameters | None = None
    ) -> R | None:
        """Returns the first row, or None."""
        return (await self._reply(statement, parameters)).first()

    async def all(self, statement: Statement[R], parameters: Parameters | None = None) -> list[R]:
        return (await self._reply(statement, parameters)).rows()

    def ask(self, statement: Statement[R], parameters: Parameters | None = None) -> Reply[R]:
        """Sends a statement. Its rows are there once the transaction has ended, so that several
        statements share one round trip."""
        return self.exchange.ask(statement, parameters)

    async def run(self, statement: Command, parameters: Parameters | None = None) -> None:
        """Runs a statement without waiting for its result; an error surfaces at the next fetch or
        at the commit."""
        self.exchange.run(statement, parameters)

    def send(self, statement: bytes, *values: str | bytes) -> None:
        """Does the same as `run`, for the few statements that accompany most changes: their values
        are not adapted. Placeholders are `$1 ...`; pass bytes only for bytea columns."""
        self.exchange.send(statement, *values)

    @contextmanager
    def acting_for(self, owner: str) -> Iterator[None]:
        """Lets the transaction act for another owner within the block: its statements see and write
        the rows of that owner alone. For callers that serve every owner."""
        own = self.owner
        self._enter(owner)
        yield
        self._enter(own)  # after an error the transaction is rolled back

    def _enter(self, owner: str) -> None:
        self.owner = owner
        self.send(_CONTEXT, owner)

    def operate(self) -> None:
        """Shows this transaction the rows of all owners that policies named `operating` show."""
        self.send(_OPERATOR)

    async def _reply(self, statement: Statement[R], parameters: Parameters | None) -> Reply[R]:
        reply = self.exchange.ask(statement, parameters)
        await self.exchange.receive(reply)
        await self.look_earlier()  # before errors of this statement: a repeat may collide with rows
        return reply  # that the first call made

    async def look_earlier(self) -> None:
        """Raises _Answered if the request was answered before. The check shares the round trip of
        the first statement."""
        earlier, self.earlier = self.earlier, None
        if earlier:
            await earlier.look()


@dataclass(frozen=True, slots=True)
class _Earlier:
    """The query for a request's stored answer, sent but not read yet."""

    exchange: Exchange
    reply: Reply[_Stored]
    key: Mapping[str, Any]
    answer: type[Message]

    async def look(self) -> None:
        await self.exchange.receive(self.reply)
        answer = _replay(self.reply.first(), self.key, self.answer)
        if answer is not None:
            raise _Answered(answer)


@dataclass
class _Answered(Exception):
    """The request was answered before; this transaction is rolled back."""

    answer: Any


class Database:
    """The connection pool of one service in one role."""

    def __init__(self, settings: Settings, service: str, *, pool_size: int | None = None) -> None:
        self.service = service
        self.settings = settings
        options = (
            f"-c search_path={service},{service}_jobs"
            f" -c statement_timeout={int(settings.statement_timeout_seconds * 1000)}"
            f" -c lock_timeout={int(settings.lock_timeout_seconds * 1000)}"
            " -c idle_in_transaction_session_timeout=10000 -c timezone=UTC"
        )
        self.url = settings.database_url.get_secret_value()
        self.connect_arguments: dict[str, Any] = {
            "options": options,
            "connect_timeout": 5,
            "application_name": f"atelier-{service}",
            # These detect a server that disappeared silently within some 20 s; without them it
            # takes a quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        }
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self.url,
            connection_class=Connection,
            kwargs=self.connect_arguments,
            min_size=1,
            max_size=pool_size or settings.pool_size,
            timeout=settings.pool_wait_seconds,
            max_idle=300,
            # The pool's backoff grows while it tries to connect. If it gives up early, the next
            # caller starts afresh, so the pool recovers within a second or two after a long outage
            # of the database.
            reconnect_timeout=2,
            configure=self._configure,
            open=False,
        )
        self._lent = 0
        self._endings: set[asyncio.Task[None]] = set()
        self._mending: asyncio.Task[None] | None = None

    async def _configure(self, conn: Connection) -> None:
        await conn.set_autocommit(True)  # not a connect argument: the job queue passes its own
        # psycopg would deallocate every prepared statement, also those of `Exchange`, whenever it
        # rolls back after it prepared one.
        conn.prepare_threshold = None
        # A frozen process must not keep its rows locked. The server never considers a session in a
        # pipeline idle, so only this limit ends it. Postgres before 17 doesn't have it.
        if conn.info.server_version >= 170000:
            limit = str(int(self.settings.statement_timeout_seconds * 1000))
            await conn.execute("SELECT set_config('transaction_timeout', %s, false)", (limit,))

    async def open(self) -> None:
        """Connects in the background, so a server starts and answers health checks while its
        database is unreachable."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=2)

    def mend(self) -> None:
        """Checks the idle connections and replaces broken ones. Call it after meeting a broken one:
        a server that ended one often ended all, and each would fail another caller."""
        # This runs in its own task: a cancelled caller would take the connections out of the pool
        # for good.
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._pool.check())

    async def connect(self) -> Connection:
        """Opens a connection outside the pool, for LISTEN or a session lock. The caller closes
        it."""
        return await Connection.connect(self.url, autocommit=True, **self.connect_arguments)

    async def ready(self) -> bool:
        """Returns True if a statement runs within 2 s."""
        try:
            async with asyncio.timeout(2), self._pool.connection() as conn:
                await conn.execute("SELECT 1")
            return True
        except Exception:
            return False

    @property
    def pool(self) -> AsyncConnectionPool[Connection]:
        """The pool, for libraries that bring their own statements (the job queue)."""
        return self._pool

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Yields a pooled connection. Raises PoolTimeout if all are in use, OperationalError if the
        database can't be reached."""
        try:
            conn = await self._pool.getconn()
        except PoolTimeout:
            if self._lent:
                raise
            raise psycopg.OperationalError("there is no connection to the database") from None
        self._lent += 1
        try:
            yield conn
        except BaseException:
            # The rollback runs in its own task, which is never cancelled. The caller may be
            # cancelled twice, by its deadline and by gRPC. If the connection were given back then,
            # the pool would close its socket while the rollback still waits for it, and the event
            # loop would abort the process.
            ending = asyncio.create_task(self._end(conn))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)
            raise
        await self._give_back(conn)

    async def _end(self, conn: Connection) -> None:
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await conn.settle()
                await conn.rollback()
        except (psycopg.Error, TimeoutError):
            await conn.close()  # the pool makes a new one
            self.mend()
        finally:
            await self._give_back(conn)

    async def _give_back(self, conn: Connection) -> None:
        self._lent -= 1
        await self._pool.putconn(conn)

    async def first(
        self, statement: Statement[R], parameters: Parameters | None = None
    ) -> R | None:
        """Returns the first row that the caller's owner sees, or None."""
        rows = await self.all(statement, parameters)
        return rows[0] if rows else None

    async def one(self, statement: Statement[R], parameters: Parameters | None = None) -> R:
        """Returns the one row. Raises LookupError if there is none, which is a bug of ours."""
        rows = await self.all(statement, parameters)
        return _must(rows[0] if rows else None, statement)

    async def all(self, statement: Statement[R], parameters: Parameters | None = None) -> list[R]:
        """Returns all rows of one statement that the caller's owner sees, in one round trip."""
        return await self._read(auth.current().owner, statement, parameters)

    async def system_all(
        self, statement: Statement[R], parameters: Parameters | None = None
    ) -> list[R]:
        """Reads as a worker without an owner. Returns the rows that the role's own policies show
        (queues, never contents)."""
        return await self._read("", statement, parameters)

    async def _read(
        self, owner: str, statement: Statement[R], parameters: Parameters | None
    ) -> list[R]:
        # The statements are one transaction without BEGIN, and the context ends with it.
        async with self._connection() as conn:
            exchange = conn.exchange()
            if owner:
                exchange.send(_CONTEXT, owner)
            reply = exchange.ask(statement, parameters)
            await exchange.end()
            return reply.rows()

    @asynccontextmanager
    async def transaction(self, owner: str, actor: str = "atelier") -> AsyncIterator[Mutation]:
        """Opens a transaction for `owner`; '' is the system. Commits on exit, rolls back on an
        exception."""
        async with self._connection() as conn:
            exchange = conn.exchange()
            exchange.send(b"BEGIN")
            exchange.send(_CONTEXT, owner)
            yield Mutation(exchange, owner, actor)
            exchange.send(b"COMMIT")
            await exchange.end()

    async def stored_answer(self, request: Request, answer: type[A]) -> A | None:
        """Returns the answer of an earlier call with this request_id, or None. For calls that work
        before they open their transaction."""
        if not request.request_id:
            return None
        key = _request_key(request)
        async with self.transaction(auth.current().owner) as m:
            return _replay(await m.first(_SELECT_ANSWER, key), key, answer)

    async def mutate(
        self, request: Request, answer: type[A], work: Callable[[Mutation], Awaitable[A]]
    ) -> A:
        """Runs `work` once per request_id of the caller; a repeat gets the first answer.

        Concurrent duplicates wait for the first; one that waits longer than the lock timeout is
        ABORTED with RetryInfo. A failure stores nothing, so a repeat runs again. The answer that
        `work` returns must not hold URLs: add them afterwards.
        """
        identity = auth.current()
        try:
            async with self.transaction(identity.owner, identity.actor) as m:
                if not request.request_id:
                    return await work(m)
                return await _once(m, _request_key(request), answer, work)
        except _Answered as before:
            return before.answer


async def execute(
    conn: Connection, statement: Statement[R], parameters: Parameters | None = None
) -> AsyncCursor[R]:
    """Runs a statement on a connection; returns the cursor with its rows."""
    cursor = conn.cursor(row_factory=statement.row_factory)
    return await cursor.execute(statement.text, parameters)


def _must(row: R | None, statement: Command) -> R:
    if row is None:
        raise LookupError(f"no row where there must be one: {statement.text}")
    return row


async def _once(
    m: Mutation, key: Mapping[str, Any], answer: type[A], work: Callable[[Mutation], Awaitable[A]]
) -> A:
    """Runs `work` unless the request was answered before. The check shares the round trip of the
    first statement of `work`."""
    named = [key[name] for name in ("owner", "actor", "method", "request_id")]
    m.send(_HOLD_REQUEST, "\x1f".join(named))
    m.earlier = _Earlier(m.exchange, m.ask(_SELECT_ANSWER, key), key, answer)
    try:
        result = await work(m)
    except errors.DomainError:
        # `work` may refuse before its first statement; a repeat still gets the stored answer.
        await m.look_earlier()
        raise
    await m.look_earlier()
    m.send(_STORE_ANSWER, *named, key["body_hash"], result.SerializeToString())
    return result


def _request_key(request: Request, identity: auth.Identity | None = None) -> dict[str, Any]:
    identity = identity or auth.current()
    return {
        "owner": identity.owner,
        "actor": identity.actor,
        "method": request.DESCRIPTOR.full_name,
        "request_id": request.request_id,
        "body_hash": hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
    }


def _replay(stored: _Stored | None, key: Mapping[str, Any], answer: type[A]) -> A | None:
    if stored is None:
        return None
    if stored.body_hash != key["body_hash"]:
        raise errors.invalid(
            "request_id",
            f"{key['request_id']!r} was used with another body; use a new id for a new request",
            Reason.ERROR_REASON_REQUEST_ID_REUSED,
        )
    return answer.FromString(stored.answer)


async def forget_answer(m: Mutation, request: Request, caller: auth.Identity | None = None) -> None:
    """Deletes the request's stored answer, so that a repeat runs again: for calls that commit
    before their work. `caller`: who made the request, unless it is the current identity."""
    key = _request_key(request, caller)
    with m.acting_for(key["owner"]):
        await m.run(_DELETE_ANSWER, key)


async def forget_answers(db: Database, older_than: timedelta, chunk: int = 5000) -> int:
    """Deletes stored answers past their retention in chunks. Returns how many it deleted."""
    total = 0
    while True:
        async with db.transaction("") as m:
            gone = await m.all(_DELETE_OLD_ANSWERS, {"age": older_than, "chunk": chunk})
        total += len(gone)
        if len(gone) < chunk:
            return total
