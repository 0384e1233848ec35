"""The ten lines: a task that counts, on a SQLite file beside you. Stop it half-way and start it again: it goes on."""

import pyasync


@pyasync.task("count")
def count(run):
    for i in range(run.context["i"], 10):
        yield {"i": i + 1}  # a commit: wherever the task runs next, it goes on from here


if __name__ == "__main__":
    pyasync.init("sqlite:///tasks.db")
    id = pyasync.create_task("count", {"i": 0}, key="quickstart")  # while one of this key is alive, it is that one
    print(pyasync.wait_task(id).context)
    pyasync.stop()
