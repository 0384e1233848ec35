"""Run a server for as long as the process that asked for it lives: `guardian.py FOLDER UID GID SIGNAL COMMAND...`.

Prints the server's process id, then reads its standard input, a pipe from the tests. A byte means: stop the server.
The end of the input means: the tests are gone, however they went, so the folder goes too. When the server ends by
itself the guardian ends with it, and that is how the tests notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

LOG = "server.log"
PATIENCE = 20.0


def main(folder: str, uid: str, gid: str, stop_signal: str, *command: str) -> None:
    with open(os.path.join(folder, LOG), "ab") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, user=int(uid), group=int(gid)
        )
    os.write(1, b"%d\n" % server.pid)
    orphaned = threading.Event()
    threading.Thread(target=_stop_when_told, args=(server, int(stop_signal), orphaned), daemon=True).start()
    server.wait()
    if orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)


def _stop_when_told(server: subprocess.Popen[bytes], stop_signal: int, orphaned: threading.Event) -> None:
    # Not sys.stdin: a daemon thread inside it would abort the interpreter when the server has ended by itself.
    if not os.read(0, 1):
        orphaned.set()
    server.send_signal(stop_signal)
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
