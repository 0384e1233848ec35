"""Where the messages begin and end that a client sends to PostgreSQL or MariaDB, and what each of them says.

A message of PostgreSQL's is here all that its client sends up to a Sync, or a simple query: the server tells nobody of
anything, and commits nothing, before it has come to the Sync. So a cut inside of such a batch is one before it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

SHOWN = 60  # characters of a statement; what is longer is told apart by a checksum

_TLS, _GSS, _CANCEL = 80877103, 80877104, 80877102
_READY = b"Z\0\0\0\5"
_NOTIFICATION = b"A"
_FULL = 0xFFFFFF  # a packet of this length goes on in the next one


@dataclass(frozen=True)
class Message:
    """What a client sends at once, and then waits for an answer to."""

    data: bytes
    text: str
    """What it says, without the values: the same in every run. A COMMIT says what it commits."""
    answer: bytes = b""
    """What is in the answer's end."""

    @property
    def label(self) -> str:
        """A short name of what it says."""
        if len(self.text) <= SHOWN:
            return self.text
        return f"{self.text[:SHOWN]} #{zlib.crc32(self.text.encode()):08x}"


class Messages(Protocol):
    """Cuts a client's bytes into messages."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take what has arrived, and return the messages that are complete."""
        ...


class PostgreSQLMessages:
    """Those of one connection to PostgreSQL."""

    def __init__(self) -> None:
        self._buffer = b""
        self._unit = b""
        self._texts: list[str] = []
        self._prepared: dict[bytes, str] = {}
        self._session = _Session()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while (frame := self._frame()) is not None:
            self._unit += frame
            if not self._begun:
                yield self._greeting(frame)
            elif text := self._understood(frame[:1], frame[5:]):
                yield self._message(text, _READY)

    def _frame(self) -> bytes | None:
        head = 1 if self._begun else 0
        if len(self._buffer) < head + 4:
            return None
        size = head + struct.unpack_from("!I", self._buffer, head)[0]
        if len(self._buffer) < size:
            return None
        frame, self._buffer = self._buffer[:size], self._buffer[size:]
        return frame

    def _greeting(self, frame: bytes) -> Message:
        code = struct.unpack_from("!I", frame, 4)[0]
        asks = {_TLS: "ask for TLS", _GSS: "ask for GSS", _CANCEL: "cancel"}.get(code)
        self._begun = asks is None
        return self._message(asks) if asks else self._message("log in", _READY)

    def _understood(self, kind: bytes, body: bytes) -> str | None:
        """Return what a unit says when it is complete."""
        match kind:
            case b"Q":
                return self._session.said(body)
            case b"P":
                name, sql = body.split(b"\0")[:2]
                self._prepared[name] = plain(sql)
                self._texts.append(f"prepare: {self._prepared[name]}")
            case b"B":
                self._texts = [self._prepared[body.split(b"\0")[1]]]
            case b"S":
                texts, self._texts = self._texts, []
                return self._session.say("; ".join(texts) or "sync")
            case b"X":
                return "leave"
            case b"p":
                return "password"
        return None

    def _message(self, text: str, answer: bytes = b"") -> Message:
        data, self._unit = self._unit, b""
        return Message(data, text, answer)


class MySQLMessages:
    """Those of one connection to MariaDB or MySQL."""

    def __init__(self) -> None:
        self._buffer = b""
        self._unit = b""
        self._session = _Session()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:3], "little")
            if len(self._buffer) < 4 + size:
                return
            packet, self._buffer = self._buffer[: 4 + size], self._buffer[4 + size :]
            self._unit += packet
            if size < _FULL:
                unit, self._unit = self._unit, b""
                yield Message(unit, self._understood(unit))

    def _understood(self, unit: bytes) -> str:
        if unit[3] != 0:  # the greeting was the server's
            return "log in"
        match unit[4]:
            case 0x01:
                return "leave"
            case 0x03:
                return self._session.said(unit[5:])
            case command:
                return f"command {command}"


class _Session:
    """Remembers what was said before, so that a COMMIT can be told from another."""

    def __init__(self) -> None:
        self._writes = ""

    def said(self, sql: bytes) -> str:
        """Return what a query says."""
        return self.say(plain(sql))

    def say(self, text: str) -> str:
        """Return what a statement says in its place."""
        verb = text.split(" ", 1)[0]
        if verb in ("commit", "rollback"):
            writes, self._writes = self._writes, ""
            return f"{verb}: {writes}" if writes else verb
        if verb == "begin":
            self._writes = ""
        elif text.startswith("with ") or verb in ("insert", "update", "delete"):
            self._writes = text
        return text


_LITERAL = re.compile(r"(?:_binary\s*)?x?'(?:[^'\\]|\\.|'')*'|\$\d+|%s|\b\d+(?:\.\d+)?\b", re.DOTALL)
_LIST = re.compile(r"\?(?:, \?)+")


def plain(sql: bytes) -> str:
    """Return a statement in lower case, without values, and as if all lists were equally long."""
    text = sql.rstrip(b"\0").decode("utf-8", "replace")
    return _LIST.sub("?", " ".join(_LITERAL.sub("?", text).lower().split()))


class Answers:
    """Cuts what PostgreSQL's server says into messages, to leave out notifications."""

    def __init__(self) -> None:
        self._buffer = b""
        self.single = 0
        """How many answers of a single byte are to come, as to the question for TLS."""

    def feed(self, data: bytes, *, deaf: bool) -> tuple[bytes, int]:
        """Return what is complete; if deaf, without notifications, and how many of these there were."""
        self._buffer += data
        kept, left_out = b"", 0
        while (size := self._size()) is not None:
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            if deaf and frame[:1] == _NOTIFICATION:
                left_out += 1
            else:
                kept += frame
        return kept, left_out

    def _size(self) -> int | None:
        if self._buffer and self.single:
            self.single -= 1
            return 1
        if len(self._buffer) < 5:
            return None
        size = 1 + int(struct.unpack_from("!I", self._buffer, 1)[0])
        return size if len(self._buffer) >= size else None
