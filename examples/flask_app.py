"""A service that writes reports: the web processes only create tasks and look at them, nodes of their own run them.

flask --app examples/flask_app run                                     the web
cd examples && pyasync node flask_app:registry --database URL          a worker; as many of them as you like
python examples/flask_app.py                                           both in one process, to look at
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from flask import Flask, Response, g, jsonify, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pyasync
from pyasync import Finished, Node, Registry, Report, Run, Task, TaskNotFound, TypeNotRegistered

registry = Registry()


@registry.task("report.write", timeout=600)
def write_report(run: Run[dict[str, Any]]) -> Iterator[Report]:
    """Write a report page by page."""
    pages = run.arguments["pages"]
    for page in range(run.context.get("page", 0) + 1, pages + 1):
        time.sleep(0.02)
        yield Report({"page": page}, progress=page / pages)
    yield Finished({"url": f"/files/{run.id}.pdf"})


class Base(DeclarativeBase):
    pass


class Wanted(Base):
    __tablename__ = "report_wanted"

    task: Mapped[UUID] = mapped_column(primary_key=True)
    title: Mapped[str]


def create_app(database: str | None = None) -> Flask:
    app = Flask(__name__)
    engine = create_engine(database or os.environ.get("PYASYNC_DATABASE_URL", "sqlite:///reports.db"))
    Base.metadata.create_all(engine)
    # Only creates and queries: no lease and no threads, so it may be made before a server like gunicorn forks.
    pyasync.init(engine, run=False, migrate="auto")

    @app.before_request
    def identify() -> None:
        g.user = request.headers.get("X-User", "")

    @app.post("/reports")
    def want() -> tuple[Response, int]:
        wanted = request.get_json()
        with Session(engine) as session, session.begin():  # the row and the task: both, or neither
            id = pyasync.create_task("report.write", {"pages": wanted["pages"]}, user=g.user, connection=session)
            session.add(Wanted(task=id, title=wanted["title"]))
        return jsonify(id=id), 202

    @app.get("/reports")
    def list_all() -> Response:
        with Session(engine) as session:
            titles = {row.task: row.title for row in session.scalars(select(Wanted))}
        return jsonify([as_json(task, titles[task.id]) for task in pyasync.get_tasks(user=g.user)])

    @app.get("/reports/<uuid:id>")
    def show(id: UUID) -> Response:
        with Session(engine) as session:
            return jsonify(as_json(pyasync.get_task(id, user=g.user), session.get_one(Wanted, id).title))

    @app.post("/reports/<uuid:id>/<any(pause, run, cancel):wish>")
    def change(id: UUID, wish: str) -> tuple[str, int]:
        verbs = {"pause": pyasync.pause_task, "run": pyasync.run_task, "cancel": pyasync.cancel_task}
        verbs[wish](id, user=g.user)
        return "", 204

    @app.errorhandler(TaskNotFound)
    def not_found(error: TaskNotFound) -> tuple[Response, int]:
        return jsonify(error="no such report"), 404

    @app.errorhandler(pyasync.InvalidTransition)
    def not_now(error: pyasync.InvalidTransition) -> tuple[Response, int]:
        return jsonify(error=str(error)), 409

    @app.errorhandler(TypeNotRegistered)
    def nobody_writes(error: TypeNotRegistered) -> tuple[Response, int]:
        return jsonify(error="no worker was ever started: it is what makes the types known"), 503

    return app


def as_json(task: Task, title: str) -> dict[str, Any]:
    return {"id": task.id, "title": title, "state": task.state, "progress": task.progress, "result": task.result}


def main(database: str) -> None:
    client = create_app(database).test_client()
    with Node(database, registry):  # elsewhere: `pyasync node`
        id = client.post("/reports", json={"title": "Sums", "pages": 20}).json["id"]
        while (report := client.get(f"/reports/{id}").json)["state"] != "FINISHED":
            print(report)
            time.sleep(0.2)
        print(report)
    pyasync.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"sqlite:///{folder}/reports.db")
