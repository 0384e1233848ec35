"""Breaks the commits of a node's committer, as a deadlock or a connection that is lost does."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import event, exc, func, select

from pyasync import Node
from tests.runtime.other import TASK


class Blips:
    """Makes the next commits raise, before they are stored or after; `left` is how many. Without a claimed task in the
    table, they are none.
    """

    def __init__(self, started: Node, *, stored: bool) -> None:
        self.left = 0
        self.fired = 0
        self._stored = stored
        event.listen(started._database.engine, "commit", self._break)

    def _break(self, connection: Any) -> None:
        if not self.left or threading.current_thread().name != "pyasync-committer" or not _is_claimed(connection):
            return
        self.left -= 1
        self.fired += 1
        driver = connection.connection.driver_connection
        driver.commit() if self._stored else driver.rollback()
        raise exc.TimeoutError("a blip")


def _is_claimed(connection: Any) -> bool:
    return bool(connection.execute(select(func.count()).where(TASK.c.fence.is_not(None))).scalar_one())
