"""A TCP proxy before a database, by which a test takes the database away and gives it back."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from sqlalchemy import make_url

HOST = "127.0.0.1"


class Proxy:
    """Forwards to the server of a URL; `url` is the same database by way of the proxy."""

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._listener = socket.create_server((HOST, 0))
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self._flowing = threading.Event()
        self._flowing.set()
        port = self._listener.getsockname()[1]
        self.url = self._server.set(host=HOST, port=port).render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._flowing.set()
        self._listener.close()

    def cut(self) -> None:
        """Break all connections, and let nobody in."""
        self._cut = True
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            _close(link)

    def hang(self) -> None:
        """Forward nothing more, while everybody stays connected and may connect."""
        self._flowing.clear()

    def mend(self) -> None:
        """Be there again; what was held back in between arrives now."""
        self._cut = False
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                _close(client)
                continue
            server = socket.create_connection((self._server.host or HOST, self._server.port or 0))
            with self._lock:
                self._links |= {client, server}
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        _close(source)
        _close(target)


def _close(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)  # first: a recv that waits would keep the socket open
    link.close()
