"""What the tests of the runtime begin with: nodes with short settings, stopped at the end, and another program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyasync import Node, Registry
from tests.runtime.other import Other

SHORT: dict[str, Any] = {
    "poll_interval": 0.1,
    "lease": 3.0,
    "stop_grace": 1.0,
    "database_timeout": 10.0,
    "migrate": "auto",
}


class Nodes:
    """Starts nodes on one database, on loops in threads of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[Node] = []

    def __call__(self, registry: Registry, **settings: Any) -> Node:
        return self.make(registry, **settings).start()

    def make(self, registry: Registry, **settings: Any) -> Node:
        """Make a node that is not started."""
        node = Node(settings.pop("url", self.url), registry, **{**SHORT, **settings})
        self._made.append(node)
        return node

    def stop(self) -> None:
        """Stop those that are not stopped yet."""
        for node in reversed(self._made):
            node.stop(1.0)


@pytest.fixture
def node(url: str) -> Iterator[Nodes]:
    nodes = Nodes(url)
    yield nodes
    nodes.stop()


@pytest.fixture
def other(url: str) -> Other:
    return Other(url)
