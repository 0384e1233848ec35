"""A disk that is full: creators are told, tasks wait without burning a core, and go on when there is room again."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from pyasync import DatabaseUnavailable
from tests.conftest import started
from tests.faults.load import Load, loaded
from tests.faults.nodes import Cluster, NodeProcess, Nursery
from tests.servers import MariaDB, PostgreSQL, PrivateServer
from tests.waiting import until

SOON = 10.0
FILLER = "filler"
MEGABYTE = 1_000_000
BALLAST = 100_000  # bytes that fit into no page that is there already

pytestmark = pytest.mark.timeout(180)


def check_full(url: str, nursery: Nursery, folder: Path, disk: Path, revive: Callable[[], None] = lambda: None) -> None:
    with loaded(url, nursery, folder) as load:
        fill(disk)
        since, used = time.monotonic(), [cpu(node) for node in load.cluster.nodes]
        until(lambda: tasks_wait(load) or load.work.done(), 60.0, "the nodes to find no room, or nothing to do")
        with pytest.raises(DatabaseUnavailable) as raised:
            create_large(load.cluster, load.work.arguments)
        span = time.monotonic() - since
        burnt = [cpu(node) - before for node, before in zip(load.cluster.nodes, used, strict=True)]

        (disk / FILLER).unlink()
        revive()
        took = load.flows()

        print(f"{'tasks wait' if tasks_wait(load) else 'all had ended'}: {raised.value}")
        print(f"{max(burnt):.2f} s of CPU in {span:.1f} s; {took:.2f} s after there is room they go on")
        assert max(burnt) < 0.5 * span, "who waits for room does not try in a tight loop"
        assert took < SOON
        load.check()


def tasks_wait(load: Load) -> bool:
    return any(load.cluster.lines("rounds go on failing"))


def create_large(cluster: Cluster, arguments: dict[str, object]) -> None:
    while True:
        cluster.client.create_task("steps", arguments | {"ballast": secrets.token_hex(BALLAST // 2)})


def cpu(node: NodeProcess) -> float:
    """The seconds of CPU that a process has used."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mount(folder: Path, megabytes: int) -> None:
    """Make a folder a file system that is full soon."""
    folder.mkdir(exist_ok=True)
    options = ["-o", f"size={megabytes}m,mode=755", "tmpfs"]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")


def unmount(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=[PostgreSQL, MariaDB], ids=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    yield from started(request.param)


def fill(disk: Path) -> None:
    with open(disk / FILLER, "wb", buffering=0) as filler:
        for size in (MEGABYTE, 4096):
            with pytest.raises(OSError, match="No space left"):
                while filler.write(bytes(size)):
                    pass


def test_a_full_disk_fails_no_task(server: PrivateServer, nursery: Nursery, tmp_path: Path) -> None:
    name = server.create()
    # With room for one database's tables, and not for the log of all: without that, any server ends itself.
    disk = server.data / name if server.kind == "mariadb" else server.folder / "disk"
    mount(disk, 24)
    try:
        os.chown(disk, server._uid, server._gid)
        if server.kind == "postgresql":
            with server.connect() as connection:
                connection.execute(text(f"CREATE TABLESPACE small LOCATION '{disk}'"))
                connection.execute(text(f"ALTER DATABASE {name} SET TABLESPACE small"))
        check_full(server.url(name), nursery, tmp_path, disk, lambda: revive(server))
    finally:
        server.stop()
        unmount(disk)


def revive(server: PrivateServer) -> None:
    """Start a server that has ended itself: MariaDB may, when it finds no room for a page that it wants to write."""
    if not server._runs():
        print(f"{server.kind} has ended itself")
        server.stop()
        server.start()


def test_a_full_disk_of_sqlite_s_fails_no_task(nursery: Nursery, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount(disk, 24)
    try:
        check_full(f"sqlite:///{disk / 'test.db'}", nursery, tmp_path, disk)
    finally:
        unmount(disk)
