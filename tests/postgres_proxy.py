"""A network that loses connections at the worst moment: between a client and PostgreSQL."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_COMMIT_COMMAND = b"COMMIT"  # from the client, in a query
_COMMIT_DONE = b"COMMIT\x00"  # from the server, the tag of a command that is complete


class LossyProxy:
    """Passes bytes on, and cuts a connection around a commit when told to."""

    def __init__(self, server_socket: str) -> None:
        self._server_socket = server_socket
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose_commits = 0
        """How many commits still to lose before they reach the server."""
        self.lose_answers = 0
        """How many answers to commits still to lose: done, but the client never hears of it."""
        self.lost = 0
        self.passing = threading.Event()
        """Cleared, everything is swallowed, and no connection is cut."""
        self.passing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.passing.set()
        # Or the thread would go on accepting, and for the next one to whom the number is given.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server_socket)
                for source, target, passes in (
                    (client, server, self._passes_to_server),
                    (server, client, self._passes_to_client),
                ):
                    threading.Thread(
                        target=self._pump, args=(source, target, passes), daemon=True
                    ).start()

    def _passes_to_server(self, data: bytes) -> bool:
        if self.lose_commits and _COMMIT_COMMAND in data:
            self.lose_commits -= 1
            return False
        return True

    def _passes_to_client(self, data: bytes) -> bool:
        if self.lose_answers and _COMMIT_DONE in data:
            self.lose_answers -= 1
            return False
        return True

    def _pump(self, source: socket.socket, target: socket.socket, passes: object) -> None:
        assert callable(passes)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passing.wait()
                if not passes(data):
                    self.lost += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy_proxy(env: dict[str, str]) -> Iterator[tuple[LossyProxy, dict[str, str]]]:
    """Put a proxy before the server of ``env``; yields it and the settings that go through it."""
    proxy = LossyProxy(f"{env['POSTGRES_HOST']}/.s.PGSQL.5432")
    try:
        yield proxy, {**env, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(proxy.port)}
    finally:
        proxy.close()
