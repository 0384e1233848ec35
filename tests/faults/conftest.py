from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nodes import Cluster, Nursery


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
