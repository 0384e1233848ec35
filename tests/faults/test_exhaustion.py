"""A node that runs out of what its process may have, and two nodes that call themselves the same."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pyasync import Finished, NewTask, Node, Registry, Run, State
from tests.faults import worker
from tests.faults.nodes import Cluster
from tests.waiting import until

LEASE = 1.5
TASKS = 4
FILES = 256


def hoard(run: Run[Any]) -> Iterator[Any]:
    """Open files until no more can be opened, and hold them for some leases."""
    files = []
    with suppress(OSError):
        while True:
            files.append(open("/dev/null"))  # noqa: SIM115 - they are to stay open
    run.stop.wait(3 * LEASE)
    for file in files:
        file.close()
    yield Finished(len(files))


def registry(url: str) -> Registry:
    """Return what the node of this test runs, in a process that may open few files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    made = worker.registry(url)
    made.register_task("hoard", hoard)
    return made


def test_node_without_file_descriptors_keeps_its_lease_and_its_tasks(cluster: Cluster) -> None:
    """F52: who has a connection goes on with it."""
    node = cluster.start(registry=f"{__name__}:registry", lease=LEASE)
    heir = cluster.start(types=["none"], lease=LEASE)
    was = node.id()
    ids = cluster.client.create_tasks([NewTask(type="innocent", arguments={"n": 60, "pause": 0.1})] * TASKS)
    hoarding = cluster.client.create_task("hoard")

    found = cluster.client.wait_task(hoarding, 30.0)
    until(lambda: cluster.client.count_tasks() == {State.FINISHED: TASKS + 1}, 30.0, "the others to finish")

    assert found.result > FILES / 2, "this counts only if files ran out"
    assert {(task.epoch, task.attempt) for task in [found, *cluster.client.get_tasks(ids=ids)]} == {(1, 1)}
    assert (node.id(), heir.lines("a node was declared lost")) == (was, [])


def test_two_nodes_of_the_same_name_are_two_nodes(url: str) -> None:
    """F46: a name is for people; ids are drawn at random."""
    made = Registry()
    made.register_task("noop", lambda: "done")
    with Node(url, made, name="twin", migrate="auto") as one, Node(url, made, name="twin") as other:
        assert [info.name for info in one.get_nodes()] == ["twin", "twin"]
        ids = one.create_tasks([NewTask(type="noop")] * 20)
        until(lambda: one.count_tasks() == {State.FINISHED: 20}, what="all to finish")

        one.stop()

        assert len(other.get_nodes()) == 1
        assert {(task.epoch, task.attempt) for task in other.get_tasks(ids=ids)} == {(1, 1)}
