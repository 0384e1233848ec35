"""A TCP proxy before a database: it takes the database away and gives it back, slows it down, and breaks connections
at a message of the test's choice.

    with Proxy(url) as proxy:
        trap = proxy.trap(lambda link, message: message.text.startswith("commit"), when=When.AFTER)
        ...                      # by way of proxy.url
        assert trap.fired == 1
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from sqlalchemy import make_url

from tests.faults.messages import Answers, Message, Messages, MySQLMessages, PostgreSQLMessages

HOST = "127.0.0.1"
CHUNK = 65536
PATIENCE = 2.0
"""Seconds for which a broken connection's server is given time to do what it was told."""


class When(Enum):
    """What a trap does at its message; all but the last break the connection."""

    BEFORE = "before"
    """The server never gets the message."""
    AFTER = "after"
    """The server does what it says, and the answer is lost."""
    LATE = "late"
    """The client loses the connection first; the server gets the message when the trap is told to `deliver`, or after
    its `delay`.
    """
    STUCK = "stuck"
    """Nobody loses the connection, but the message stays on its way until the trap is told to `deliver`."""


@dataclass
class Trap:
    """Springs at the so-manieth message that it matches, and at the next ones up to `times`."""

    matches: Callable[[Link, Message], bool]
    occurrence: int
    when: When
    times: int
    delay: float | None
    fired: int = 0
    seen: int = 0
    at: str = ""
    """The label of the message at which it fired last."""
    delivered: threading.Event = field(default_factory=threading.Event)
    """What has become of a late message is known."""
    _go: threading.Event = field(default_factory=threading.Event)

    def deliver(self, wait: bool = True) -> None:
        """Let the server have a message that was held back, and do what it says."""
        self._go.set()
        assert not wait or self.delivered.wait(PATIENCE)

    def hold_back(self) -> None:
        """Wait until a message may go on."""
        self._go.wait(self.delay)

    def springs(self, link: Link, message: Message) -> bool:
        """Note a message; tell whether the connection is to be broken at it."""
        if self.fired >= self.times or not self.matches(link, message):
            return False
        self.seen += 1
        if self.seen < self.occurrence:
            return False
        self.fired += 1
        self.at = message.label
        return True


class Proxy:
    """Forwards to the server of a URL; `url` is the same database by way of the proxy.

    `sent` are the labels of all that clients have sent, in order.
    """

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._listener = socket.create_server((HOST, 0))
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._cut = False
        self._closed = threading.Event()
        self._traps: list[Trap] = []
        self.sent: list[str] = []
        self.up, self.down = _Direction(self._closed), _Direction(self._closed)
        self.deaf = False
        """Whether notifications are lost on their way; `swallowed` says how many were."""
        self.swallowed = 0
        port = self._listener.getsockname()[1]
        self.url = self._server.set(host=HOST, port=port).render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._closed.set()
        for trap in self._traps:
            trap.deliver(wait=False)
        self.mend()
        self._cut = True
        _close(self._listener)

    def cut(self) -> None:
        """Break all connections, and let nobody in."""
        self._cut = True
        for link in self.links():
            link.cut()

    def hang(self, *, up: bool = True, down: bool = True) -> None:
        """Forward nothing more, while everybody stays connected and may connect."""
        if up:
            self.up.flowing.clear()
        if down:
            self.down.flowing.clear()

    def slow(self, *, latency: float = 0.0, jitter: float = 0.0, rate: float | None = None, seed: int = 0) -> None:
        """Take so many seconds for each message in each direction, and forward so many bytes a second."""
        for each in (self.up, self.down):
            each.latency, each.jitter, each.rate, each.chance = latency, jitter, rate, random.Random(seed)

    def mend(self) -> None:
        """Be there again, and as fast as can be; what was held back in between arrives now."""
        self._cut = False
        self.slow()
        for each in (self.up, self.down):
            each.flowing.set()

    def trap(
        self,
        matches: Callable[[Link, Message], bool],
        *,
        occurrence: int = 1,
        when: When = When.BEFORE,
        times: int = 1,
        delay: float | None = None,
    ) -> Trap:
        """Set a trap, from now on; counting begins at 1."""
        trap = Trap(matches, occurrence, when, times, delay)
        with self._lock:
            self._traps.append(trap)
        return trap

    def begin_again(self) -> None:
        """Take all traps away, and forget what was sent."""
        with self._lock:
            self._traps, self.sent = [], []

    def links(self, said: str = "") -> list[Link]:
        """The connections that stand, over which such a text was sent."""
        with self._lock:
            return [link for link in self._links if link.has_said(said)]

    def meet(self, link: Link, message: Message) -> Trap | None:
        """Note a message; return the trap that it springs."""
        with self._lock:
            self.sent.append(message.label)
            return next((trap for trap in self._traps if trap.springs(link, message)), None)

    def left(self, link: Link) -> None:
        """Note that a connection has ended."""
        with self._lock:
            self._links.discard(link)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                _close(client)
            else:
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((self._server.host or HOST, self._server.port or 0))
        except OSError:  # the server is away
            _close(client)
            return
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        postgresql = self._server.get_backend_name() == "postgresql"
        link = Link(self, client, server, PostgreSQLMessages() if postgresql else MySQLMessages())
        with self._lock:
            self._links.add(link)
        link.start(Answers() if postgresql else None)


class _Direction:
    """How bytes travel from one side to the other."""

    def __init__(self, closed: threading.Event) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.latency = self.jitter = 0.0
        self.rate: float | None = None
        self.chance = random.Random(0)
        self._closed = closed

    def carry(self, data: bytes, target: socket.socket) -> None:
        """Send, as slowly as was asked for."""
        self.flowing.wait()
        if self.latency or self.jitter:
            self._closed.wait(self.latency + self.chance.uniform(-self.jitter, self.jitter))
        if self.rate is not None:
            self._closed.wait(len(data) / self.rate)
        self.flowing.wait()
        target.sendall(data)


class Link:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket, messages: Messages) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._messages = messages
        self._said: set[str] = set()
        self._muted = self._resetting = False
        self._awaited = b""
        self._answered = threading.Event()

    def start(self, answers: Answers | None) -> None:
        """Forward in both directions, from now on."""
        self._answers = answers
        for forward in (self._forward_up, self._forward_down):
            threading.Thread(target=forward, daemon=True).start()

    def has_said(self, text: str) -> bool:
        """Whether a message that contains this was sent over it."""
        return any(text in each for each in list(self._said))

    def cut(self) -> None:
        """Break it, on both sides."""
        if not self._resetting:
            _close(self._client)
        _close(self._server)
        self._proxy.left(self)

    def reset(self) -> None:
        """Break it so that the client is sent a RST, as by a firewall that has forgotten the connection."""
        self._resetting = True
        with suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Wakes up our own recv. The other half would have said an orderly goodbye.
            self._client.shutdown(socket.SHUT_RD)
        self._client.close()
        self.cut()

    def _forward_up(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(CHUNK):
                for message in self._messages.feed(data):
                    self._said.add(message.text)
                    self._pass_on(message)
        self.cut()

    def _pass_on(self, message: Message) -> None:
        trap = self._proxy.meet(self, message)
        if trap is None:
            if self._answers is not None:
                self._answers.single += message.text.startswith("ask for")
            self._proxy.up.carry(message.data, self._server)
            return
        if trap.when is When.STUCK:
            trap.hold_back()
            self._proxy.up.carry(message.data, self._server)
            return
        if trap.when is When.LATE:
            self._muted = True
            _close(self._client)
            trap.hold_back()
        if trap.when is not When.BEFORE:
            self._do_unanswered(message)
            trap.delivered.set()
        self.cut()
        raise ConnectionAbortedError

    def _do_unanswered(self, message: Message) -> None:
        self._awaited, self._muted = message.answer, True
        self._answered.clear()
        self._server.sendall(message.data)
        self._answered.wait(PATIENCE)

    def _forward_down(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(CHUNK):
                if self._muted:
                    if self._awaited in data:
                        self._answered.set()
                elif heard := self._heard(data):
                    self._proxy.down.carry(heard, self._client)
        self._answered.set()
        self.cut()

    def _heard(self, data: bytes) -> bytes:
        if self._answers is None:
            return data
        kept, left_out = self._answers.feed(data, deaf=self._proxy.deaf)
        self._proxy.swallowed += left_out
        return kept


def _close(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)  # first: a recv that waits would keep the socket open
    link.close()
