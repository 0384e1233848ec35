"""A job as a list of functions: each takes what the one before returned, and a job goes on at the one that failed.

python examples/jobs.py
"""

from __future__ import annotations

import tempfile

import pyasync
from pyasync import Registry, current_run

registry = Registry()


def download(name: str) -> str:
    print("downloading", name)
    return f"the text of {name}"


def translate(text: str) -> str:
    attempt = current_run().attempt
    print("translating, attempt", attempt)
    if attempt < 3:
        raise ConnectionError("the translator does not answer")
    return text.upper()


def publish(text: str) -> dict[str, str]:
    print("publishing", repr(text))
    return {"published": text}


registry.register_task("translation", [download, translate, publish], retry=[0.1, 0.1, 0.1])


def main(database: str) -> None:
    pyasync.init(database, registry=registry)
    id = pyasync.create_task("translation", "a letter")
    print("result:", pyasync.result(id))
    print("failures on the way:", [error["message"] for error in pyasync.get_task(id).errors])
    pyasync.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"sqlite:///{folder}/jobs.db")
