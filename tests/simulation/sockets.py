"""Servers that misbehave below HTTP: one sends the same bytes on every connection, one accepts no connection."""

from __future__ import annotations

import contextlib
import socket
import threading


class Answering:
    """Sends the same on every connection: the next answer after each packet, then closes it; used in a `with`."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.connections = 0
        self.received: list[bytes] = []  # what came before each answer, or b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends its accept()
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                for answer in self.answers:
                    self.received.append(connection.recv(65536))
                    connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)  # if bytes were unread, closing would reset it


class Silent:
    """Listens and never accepts: its queue is full, and clients get no response at all, as from a dead host.

    This is so on Linux; other systems reject connections if the queue is full.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._queued: list[socket.socket] = []

    def __enter__(self) -> Silent:
        while self._is_heard():
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._queued, self._listener):
            each.close()

    def _is_heard(self) -> bool:
        try:
            self._queued.append(socket.create_connection(("127.0.0.1", self.port), timeout=0.3))
        except TimeoutError:
            return False
        return True


def unused_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
