"""Other libraries, measured like ours: each in a virtual environment of its own, by a script in `scripts`.

They are fetched from PyPI at pinned versions when they are first measured, and are on PostgreSQL only. What a script
measures is what the question measures of pyasync, with the settings that its docstring names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import Contender, Figures, Place, Unmeasured
from benchmarks.peers.environment import interpreter

PATIENCE = 900.0
SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Peer:
    """A library and what is installed with it; `share` of a drain's tasks is enough for one that is slow."""

    name: str
    pins: tuple[str, ...]
    python: tuple[int, int] = (3, 11)
    share: float = 1.0

    @property
    def title(self) -> str:
        """The name and the version."""
        return f"{self.name} {self.pins[0].partition('==')[2]}"


PEERS = (
    Peer("pgqueuer", ("pgqueuer==1.6.0", "asyncpg==0.32.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")),
    Peer("oban", ("oban==0.7.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0"), python=(3, 12), share=0.5),
    Peer("procrastinate", ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0"), share=0.25),
    Peer("dbos", ("dbos==3.4.0", "psycopg[binary]==3.3.9"), share=0.25),
)


def contenders(question: str, kind: str) -> Sequence[Contender]:
    """List the peers that can be asked a question on a kind of database."""
    if kind != "postgresql":
        return []
    match question:
        case "drain":
            return [Contender(peer.title, partial(_ask, peer, "drain"), peer.share) for peer in PEERS]
        case "create":
            one_by_one = [
                Contender(f"{peer.title} one by one", partial(_ask, peer, "one by one"), 0.1) for peer in PEERS
            ]
            in_bulk = [Contender(f"{peer.title} in bulk", partial(_ask, peer, "in bulk"), peer.share) for peer in PEERS]
            return [*one_by_one, *in_bulk]
        case "latency":
            return [Contender(f"{peer.title}, same process", partial(_ask, peer, "latency")) for peer in PEERS]
        case _:
            return []


def _ask(peer: Peer, question: str, place: Place, size: int) -> Figures:
    """Run a peer's script; it ends when the pipe that it reads is closed, however we end."""
    python = interpreter(peer.name, peer.pins, peer.python)
    dsn = place.parts.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(python), str(SCRIPTS / f"run_{peer.name}.py"), question, dsn, str(size)]
    read, write = os.pipe()
    try:
        done = subprocess.run(command, stdin=read, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as reason:
        raise Unmeasured(str(reason)) from reason
    finally:
        os.close(read)
        os.close(write)
    if done.returncode:
        raise Unmeasured(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures
