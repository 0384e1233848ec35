from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nodes import Cluster, Nursery


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin each worker's part of a long run with long forms: all would have to wait for one that is begun last."""
    if not config.option.long:
        return
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items.sort(key=lambda item: "effort" not in getattr(item, "fixturenames", ()))
    # xdist cuts the list into equal parts, the longer ones last; who is done takes from the end of another's.
    items[:] = [item for first in reversed(range(workers)) for item in items[first::workers]]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """What forks the node processes of all tests."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def cluster(url: str, nursery: Nursery, tmp_path: Path) -> Iterator[Cluster]:
    """No nodes yet, on a fresh database of each kind in turn."""
    with Cluster(url, nursery, tmp_path) as cluster:
        yield cluster
