"""PostgreSQL's connections, which wait for no answer longer than a command has time.

Neither the library nor psycopg waits for an answer with a limit. A lock that an operator holds, a
process or a server that is frozen, and a network that swallows everything would all be waited for
without end. Here the client itself stops waiting, whatever the cause, and drops the connection; the
server is given limits of its own besides, so that what nobody waits for any more ends there too.
"""

from __future__ import annotations

import select
import time
from threading import current_thread
from typing import TYPE_CHECKING, Any, Final

import psycopg
from eventsourcing.persistence import ConnectionPoolClosedError
from eventsourcing.postgres import ConnectionPool
from psycopg import Connection
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.rows import DictRow
from psycopg_pool import PoolClosed, PoolTimeout

from scoring.retries import ATTEMPT_SECONDS, remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from eventsourcing.postgres import PostgresDatastore

_LIMIT_THE_SERVER: Final = """
SELECT set_config(name, value, false)
FROM (VALUES ('lock_timeout', %s), ('statement_timeout', '20s')) AS wanted (name, value)
WHERE current_setting(name) = '0'
"""
"""Sets what neither the role nor the database has set already."""

_NETWORK_LIMITS: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""By libpq's names, in seconds but for the last: when a silent network counts as lost."""


class NoAnswer(psycopg.DatabaseError):
    """PostgreSQL did not answer in time.

    Not an ``OperationalError``, which the library would try again ten times on its own.
    """


class BoundedConnection(Connection[DictRow]):
    """A connection that waits for no answer longer than the command has time.

    Once an answer has not come, nothing more is asked: every operation raises the same again, so
    that leaving transaction and pipeline cannot put another error in its place. The pool closes it.
    """

    pool: BoundedConnectionPool | None = None
    """Which counts it, once it is set up."""
    _no_answer: NoAnswer | None = None

    def __del__(self, *args: Any) -> None:
        if self.pool is not None and not self.closed:
            # An exception, from a signal handler, say, came between the pool and who asked for it:
            # for ever the pool would wait for it to be returned.
            self.pool.count_out()
        super().__del__(*args)

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> BoundedConnection:
        """Connect, as psycopg does, and ``tell`` why if that failed; nothing if it did not."""
        tell: Callable[[str], None] = kwargs.pop("tell")
        try:
            connection = super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            tell(" ".join(str(error).split()))
            raise
        tell("")
        return connection

    def rollback(self) -> None:
        """Roll back, as psycopg does, or close what it would not let be used again.

        Raises:
            ProgrammingError: within a block of ``transaction()``, where one may have been left by
                an exception that came before it was entered.
        """
        try:
            super().rollback()
        except psycopg.ProgrammingError:
            self.close()
            raise

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Carry out an operation, as psycopg does.

        Raises:
            NoAnswer: if it took too long.
        """
        if self._no_answer is not None:
            raise self._no_answer
        try:
            return super().wait(self._bounded(gen), *args, **kwargs)
        except (LockNotAvailable, QueryCanceled) as error:  # the server's own limits
            raise NoAnswer(str(error)) from error
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error)) from error

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        seconds = ends_at = 0.0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                # Sent nothing for a tenth of a second whenever the server is silent for as long;
                # before that there is no need to look at the clock.
                if not ready:
                    if not ends_at:
                        seconds = min(ATTEMPT_SECONDS, remaining_seconds())
                        ends_at = time.monotonic() + seconds
                    elif time.monotonic() > ends_at:
                        raise self._given_up(seconds)
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    def _given_up(self, seconds: float) -> NoAnswer:
        self._no_answer = NoAnswer(f"PostgreSQL did not answer within {seconds:.1f} s")
        return self._no_answer

    def flush_to_the_end(self) -> None:
        """Send what is buffered, however much; psycopg's pipeline mode leaves some of it behind.

        Raises:
            NoAnswer: if it took too long.
        """
        seconds = min(ATTEMPT_SECONDS, remaining_seconds())
        ends_at = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN | select.POLLOUT)
        while self.pgconn.flush():
            for _, events in poll.poll(100):
                if events & ~select.POLLOUT:
                    # Answers must be taken meanwhile, or the server stops reading; a connection
                    # that was lost raises here.
                    self.pgconn.consume_input()
            if time.monotonic() > ends_at:
                raise self._given_up(seconds)


class BoundedConnectionPool(ConnectionPool[BoundedConnection]):
    """A pool of such connections, which are not waited for longer than the command has time.

    Once closed it says so in the library's terms: what psycopg says would be tried again. Without a
    connection it says why there is none, which psycopg's pool only logs.
    """

    _trouble = ""

    def __init__(self, *, kwargs: dict[str, Any], **options: Any) -> None:
        super().__init__(kwargs={**kwargs, "tell": self._note}, **options)

    def _note(self, trouble: str) -> None:
        self._trouble = trouble

    def count_out(self) -> None:
        """Let another connection take the place of one that was lost."""
        self._nconns -= 1

    def _maybe_grow_pool(self) -> None:
        before = self._nconns, self._growing
        try:
            super()._maybe_grow_pool()
        except BaseException:
            self._nconns, self._growing = before  # else nobody would ever open one
            raise

    def _signal_stop_worker(self) -> list[Any]:
        # Without the one that closes it, for the garbage collector: it would wait for itself.
        return [each for each in super()._signal_stop_worker() if each is not current_thread()]

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Open the pool, as psycopg's does.

        Raises:
            ConnectionPoolClosedError: if it was closed.
        """
        try:
            super().open(*args, **kwargs)
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error)) from error

    def getconn(self, timeout: float | None = None) -> BoundedConnection:
        """Return a connection, as psycopg's pool does.

        Raises:
            NoAnswer: if there is none in time.
            ConnectionPoolClosedError: if the pool was closed.
        """
        try:
            return super().getconn(min(timeout or self.timeout, remaining_seconds()))
        except PoolTimeout as error:
            raise NoAnswer(f"{error}: {self._trouble}".rstrip(": ")) from error


def bounded_pool(datastore: PostgresDatastore) -> BoundedConnectionPool:
    """Return a pool to take the place of a datastore's own, which was not used yet."""
    theirs = datastore.pool
    assert isinstance(theirs.kwargs, dict)  # noqa: S101 - for the type checker
    configured = datastore.after_connect_func()

    def configure(connection: BoundedConnection) -> None:
        configured(connection)
        connection.execute(_LIMIT_THE_SERVER, (f"{datastore.lock_timeout}s",))
        connection.pool = pool

    pool = BoundedConnectionPool(
        get_password_func=theirs.get_password_func,
        connection_class=BoundedConnection,
        kwargs={**theirs.kwargs, **_NETWORK_LIMITS, "connect_timeout": int(theirs.timeout)},
        min_size=theirs.min_size,
        max_size=theirs.max_size,
        open=False,
        configure=configure,
        check=ConnectionPool.check_connection if datastore.pre_ping else None,
        timeout=theirs.timeout,
        max_waiting=theirs.max_waiting,
        max_lifetime=theirs.max_lifetime,
        # By default it pauses longer and longer, up to minutes after the server is back.
        reconnect_timeout=theirs.timeout,
    )
    return pool
