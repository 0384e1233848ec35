"""Nodes with short settings, which the fixture `node` stops at the end."""

from __future__ import annotations

from typing import Any

from pyasync import Node, Registry

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
