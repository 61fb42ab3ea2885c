"""Statements sent without waiting for one another's results, with libpq's pipeline mode.

    exchange = conn.exchange()
    exchange.send(b"SELECT set_config('app.owner_id', $1, true)", owner)
    reply = exchange.ask(_SELECT_THINGS, {...})
    await exchange.end()                      # one round trip for all of it
    rows = reply.rows()

psycopg's own pipeline does the same with a cursor and several waits for each statement. Every call
of every service goes through it, so it is written here, on psycopg's `pq`; decision 11 has the
figures. How values are adapted and loaded, how a cancelled call cancels its query, the pool and the
connection are psycopg's.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.abc import Transformer as Adapting
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format, PipelineStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from shared.database.rows import Command, Statement

R = TypeVar("R")
Parameters = Mapping[str, Any]
_Prepared = tuple[Command, tuple[int, ...]]  # a statement with the types of its parameters

# An enum's member costs a call at each look; a call of a service makes dozens.
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
_FATAL, _SYNC = ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_SYNC
_READABLE, _AUTO, _TEXT, _BINARY = Wait.R, PyFormat.AUTO, Format.TEXT, Format.BINARY
# What is prepared fits the tables no longer, or is gone.
_OUTDATED = ("0A000", "26000")
_USES_BEFORE_PREPARING = 5  # as psycopg does: a rare statement isn't worth a name on the server
_MOST_PREPARED = 200  # per connection; a service has about as many statements


class Connection(AsyncConnection[Any]):
    """A connection that keeps the names of the statements it has prepared."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.prepared: dict[_Prepared, bytes] = {}
        self._names_so_far = 0
        self._exchange: Exchange | None = None

    def exchange(self) -> "Exchange":
        """Begins an exchange. It must have ended, or be `settled`, before anything else uses the
        connection."""
        self._exchange = Exchange(self)
        return self._exchange

    async def settle(self) -> None:
        """Ends an exchange that was left because of an error: reads and drops what was asked."""
        if self._exchange and self.pgconn.pipeline_status != PipelineStatus.OFF:
            await self._exchange.drain()

    def new_name(self) -> bytes:
        # No name is given twice: a statement that failed may have left its own behind.
        self._names_so_far += 1
        return b"a%d" % self._names_so_far


class Reply(Generic[R]):
    """The rows of one statement, once they have arrived."""

    __slots__ = ("_exchange", "_good", "_result", "_statement", "_transformer", "arrived")

    def __init__(
        self, exchange: "Exchange", statement: Statement[R], transformer: Adapting
    ) -> None:
        self._exchange = exchange
        self._statement = statement
        self._transformer = transformer
        self._result: PGresult | None = None
        self._good = False
        self.arrived = False

    def rows(self) -> list[R]:
        """Returns all rows. Raises psycopg.Error if this statement or one before it failed."""
        result = self._succeeded()
        return self._transformer.load_rows(0, result.ntuples, self._statement.maker(result))

    def first(self) -> R | None:
        """Returns the first row, or None. Raises as `rows` does."""
        result = self._succeeded()
        if not result.ntuples:
            return None
        return self._transformer.load_row(0, self._statement.maker(result))

    def take(self, result: PGresult, good: bool) -> None:
        self._result, self._good, self.arrived = result, good, True

    def _succeeded(self) -> PGresult:
        result = self._result
        if result is None or not self._good:
            raise self._exchange.error or psycopg.InternalError("a result wasn't waited for")
        self._transformer.set_pgresult(result)
        return result


class _Discarded:
    """Stands for a statement whose rows nobody reads."""

    def take(self, result: PGresult, good: bool) -> None:
        pass


class _Preparing:
    """Stands for a statement that is being prepared. Its name is forgotten if that fails."""

    __slots__ = ("_conn", "_prepared")

    def __init__(self, conn: Connection, prepared: _Prepared) -> None:
        self._conn = conn
        self._prepared = prepared

    def take(self, result: PGresult, good: bool) -> None:
        if not good:
            self._conn.prepared.pop(self._prepared, None)


_DISCARDED = _Discarded()
_Awaited = Reply[Any] | _Discarded | _Preparing


class Exchange:
    """Sends statements in order and receives their results in that order. After an error Postgres
    skips the statements that follow, until `end`."""

    __slots__ = ("_awaited", "_conn", "_pgconn", "_synced", "error")

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._awaited: deque[_Awaited] = deque()
        self._synced = False
        self.error: psycopg.Error | None = None  # the first one
        self._pgconn.enter_pipeline_mode()

    def send(self, statement: bytes, *values: str | bytes) -> None:
        """Sends a statement whose rows nobody reads, for the few that accompany most calls: its
        values are not adapted. Placeholders are `$1 ...`; pass bytes only for bytea columns."""
        encoded = [value.encode() if isinstance(value, str) else value for value in values]
        formats = [_BINARY if isinstance(value, bytes) else _TEXT for value in values]
        self._pgconn.send_query_params(statement, encoded, param_formats=formats)
        self._awaited.append(_DISCARDED)

    def run(self, command: Command, parameters: Parameters | None = None) -> None:
        """Sends a statement without rows."""
        self._send(command, Transformer(self._conn), parameters)
        self._awaited.append(_DISCARDED)

    def ask(self, statement: Statement[R], parameters: Parameters | None = None) -> Reply[R]:
        """Sends a statement; returns its reply, which arrives with `receive` or `end`."""
        transformer = Transformer(self._conn)
        self._send(statement, transformer, parameters)
        reply = Reply(self, statement, transformer)
        self._awaited.append(reply)
        return reply

    async def receive(self, reply: Reply[Any]) -> None:
        """Waits until this reply, and with it every earlier one, has arrived. Raises only if the
        connection is lost."""
        if not reply.arrived:
            self._pgconn.send_flush_request()
            await self._conn.wait(self._take(reply))

    async def end(self) -> None:
        """Waits until everything has arrived. Raises the first error. Statements outside BEGIN and
        COMMIT are one transaction, which ends here."""
        await self.drain()
        if self.error:
            raise self.error

    async def drain(self) -> None:
        """Does the same as `end`, but doesn't raise errors of statements."""
        if not self._synced:
            self._pgconn.pipeline_sync()
            self._synced = True
        await self._conn.wait(self._take(None))

    def _send(self, command: Command, transformer: Adapting, parameters: Parameters | None) -> None:
        given = [parameters[name] for name in command.names] if parameters else []
        values = transformer.dump_sequence(given, [_AUTO] * len(given))
        types, formats = transformer.types or (), transformer.formats
        name = self._conn.prepared.get((command, types)) or self._prepare(command, types)
        if name:
            self._pgconn.send_query_prepared(name, values, formats)
        else:
            self._pgconn.send_query_params(command.numbered, values, types, formats)

    def _prepare(self, command: Command, types: tuple[int, ...]) -> bytes | None:
        """Prepares a statement that is used often enough; returns its name."""
        command.uses += 1
        prepared = self._conn.prepared
        if command.uses <= _USES_BEFORE_PREPARING or len(prepared) >= _MOST_PREPARED:
            return None
        name = prepared[command, types] = self._conn.new_name()
        self._pgconn.send_prepare(name, command.numbered, types)
        self._awaited.append(_Preparing(self._conn, (command, types)))
        return name

    def _take(self, last: Reply[Any] | None) -> PQGen[None]:
        """Receives results, each for whoever awaits it, until `last` has arrived; without `last`
        until the end of the exchange."""
        pgconn, awaited, gaps = self._pgconn, self._awaited, 0
        while pgconn.flush():
            # Nothing is sent in after a cancellation.
            if ((yield Wait.RW) or Ready.NONE) & Ready.R:
                pgconn.consume_input()
        while last is None or not last.arrived:
            while pgconn.is_busy():
                yield _READABLE
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:  # libpq separates two statements so; a lost connection says no more
                gaps += 1
                if gaps > 2:
                    raise psycopg.OperationalError("the connection to the database was lost")
                continue
            gaps = 0
            status = result.status
            if status == _SYNC:
                # Here and not after the wait: psycopg runs this to its end even if the call is
                # cancelled.
                pgconn.exit_pipeline_mode()
                return
            if status == _FATAL and self.error is None:
                self.error = _error(result)
                if self.error.sqlstate in _OUTDATED:
                    self._conn.prepared.clear()
            if awaited:  # not so if the server ends the session by itself
                awaited.popleft().take(result, status in _GOOD)


def _error(result: PGresult) -> psycopg.Error:
    error = psycopg.errors.error_from_result(result)
    ended = error.diag.severity_nonlocalized in ("FATAL", "PANIC")
    if not ended or isinstance(error, psycopg.OperationalError):
        return error
    # The server has ended the session, for example because a transaction took too long: to whoever
    # asked, that is a lost connection.
    return psycopg.OperationalError(str(error))
