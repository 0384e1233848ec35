"""The users' verbs: on each status through real rows, in bulk, by filter, in pages, and only on one's own tasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pyasync.client import Client
from pyasync.domain.states import State
from pyasync.domain.task import NewTask
from pyasync.errors import BadArgument, InvalidTransition, NameTooLong, PyasyncError, TaskNotFound
from pyasync.ids import new_id
from tests.store.rows import FAR_AHEAD, LONG_AGO, NODE, STATUSES, Rows, changes, faults, recorded

# The design's table: what each verb makes of each status.
GRID = """
                 | run_task     | delete_task     | pause_task     | cancel_task
init, none       | pending, run | removed         | paused, pause  | failed, run
pending, run     | same         | pending, delete | paused, pause  | failed, run
pending, delete  | refused      | same            | refused        | refused
running, run     | same         | running, delete | running, pause | running, cancel
running, delete  | refused      | same            | refused        | refused
running, pause   | running, run | running, delete | same           | running, cancel
running, cancel  | refused      | running, delete | refused        | same
deleting, delete | refused      | same            | refused        | refused
paused, run      | same         | pending, delete | paused, pause  | failed, run
paused, delete   | refused      | same            | refused        | refused
paused, pause    | pending, run | pending, delete | same           | failed, run
finished, run    | refused      | pending, delete | refused        | refused
failed, run      | pending, run | pending, delete | refused        | refused
failed, delete   | refused      | pending, delete | refused        | refused
"""
VERBS = ("run_task", "delete_task", "pause_task", "cancel_task")
EVENTS = {
    "run_task": "user_run",
    "delete_task": "user_delete",
    "pause_task": "user_pause",
    "cancel_task": "user_cancel",
}
HIDDEN = ("pending, delete", "deleting, delete", "paused, delete")
UNKNOWN = UUID("01890000-0000-7000-8000-00000000dead")


def outcomes(verb: str) -> dict[str, str]:
    """What a verb makes of each status."""
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in GRID.strip("\n").splitlines())
    return {line[0]: line[head.index(verb)] for line in lines}


def kept(rows: Rows) -> list[Any]:
    """All rows, for "nothing changed"."""
    return rows.all()


# --- one verb, one status


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_does_to_each_status_what_the_table_says(client: Client, rows: Rows, verb: str) -> None:
    rows.join()
    for status, outcome in outcomes(verb).items():
        task_id = rows.put(status, losses=1, attempt=3, seq=5, context='{"at":5}', errors='[{"message":"boom"}]')
        before = rows.get(task_id)

        if outcome == "refused":
            with pytest.raises(InvalidTransition) as caught:
                getattr(client, verb)(task_id)
            assert caught.value.task_id == task_id
            assert caught.value.status == tuple(status.split(", "))
            assert caught.value.event == EVENTS[verb]
        else:
            getattr(client, verb)(task_id)

        after = rows.get(task_id)
        if outcome == "removed":
            assert after is None
        elif outcome in ("same", "refused"):
            assert changes(before, after) == {}, status
        else:
            assert rows.status(task_id) == outcome, status
            assert faults(after) == []
            assert (after.seq, after.fence, after.context) == (before.seq, before.fence, before.context)


@pytest.mark.parametrize(
    ("status", "verb", "written"),
    [
        ("running, run", "pause_task", {"mark": "pause"}),
        ("running, run", "cancel_task", {"mark": "cancel"}),
        ("running, run", "delete_task", {"mark": "delete", "held_key": None, "run_at": None}),
        ("running, pause", "run_task", {"mark": "run"}),
        ("running, pause", "cancel_task", {"mark": "cancel"}),
        ("running, cancel", "delete_task", {"mark": "delete", "held_key": None, "run_at": None}),
    ],
)
def test_a_verb_writes_nothing_of_a_running_task_but_its_mark(
    client: Client, rows: Rows, status: str, verb: str, written: dict[str, Any]
) -> None:
    task_id = rows.put(status, key_name="k", held_key="k", run_at=LONG_AGO, losses=1, attempt=2, seq=7)
    before = rows.get(task_id)

    getattr(client, verb)(task_id)

    assert changes(before, rows.get(task_id)) == written


def test_pausing_a_waiting_task_takes_it_out_of_its_queue(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", run_at=LONG_AGO)
    before = rows.get(task_id)

    client.pause_task(task_id)

    assert changes(before, rows.get(task_id)) == {"stage": "paused", "mark": "pause", "queue": None}


def test_a_paused_timer_waits_for_its_time_again_when_it_is_run(client: Client, rows: Rows) -> None:
    task_id = client.create_task("report", run_at=FAR_AHEAD)

    client.pause_task(task_id)
    paused = rows.get(task_id)
    client.run_task(task_id)
    again = rows.get(task_id)

    assert (paused.due_at, paused.run_at) == (None, FAR_AHEAD)
    assert (again.due_at, again.run_at, again.queue) == (FAR_AHEAD, FAR_AHEAD, None)


def test_a_task_that_is_run_again_queues_up_behind_those_that_wait(client: Client, rows: Rows) -> None:
    task_id = rows.put("paused, pause", ready_at=LONG_AGO)

    client.run_task(task_id)

    assert rows.get(task_id).ready_at > LONG_AGO + timedelta(days=365)


def test_running_a_failed_task_begins_a_new_life_and_keeps_its_history(client: Client, rows: Rows) -> None:
    history: dict[str, Any] = {
        "context": '{"at":5}',
        "seq": 5,
        "epoch": 4,
        "errors": '[{"message":"boom"}]',
        "version": 2,
    }
    task_id = rows.put("failed, run", attempt=4, losses=3, purge_at=LONG_AGO, result="1", **history)

    client.run_task(task_id)

    row = rows.get(task_id)
    assert (row.attempt, row.losses, row.done_at, row.purge_at, row.result, row.queue) == (
        1,
        0,
        None,
        None,
        None,
        "run",
    )
    assert {name: getattr(row, name) for name in history} == history


def test_running_a_task_on_probation_leaves_it_there(client: Client, rows: Rows) -> None:
    """A pause must not be the way around it: only a failed task has been looked at by somebody."""
    task_id = rows.put("paused, pause", losses=2)

    client.run_task(task_id)

    assert rows.get(task_id).queue == "probation"
    assert faults(rows.get(task_id)) == []


def test_cancelling_ends_a_waiting_task_with_an_error_that_says_so(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", attempt=2, errors='[{"kind":"error","message":"boom"}]', keep=60.0)

    client.cancel_task(task_id)

    task, row = client.get_task(task_id), rows.get(task_id)
    assert task.state is State.FAILED
    assert task.error == "cancelled by a user"
    assert [(entry["kind"], entry["message"]) for entry in task.errors] == [
        ("error", "boom"),
        ("cancelled", "cancelled by a user"),
    ]
    assert task.errors[1]["attempt"] == 2
    assert task.done_at is not None
    assert abs(datetime.fromisoformat(task.errors[1]["time"]) - task.done_at) < timedelta(seconds=60)
    assert row.purge_at == task.done_at + timedelta(seconds=60)


def test_cancelling_keeps_the_last_twenty_errors(client: Client, rows: Rows) -> None:
    errors = "[" + ",".join(f'{{"kind":"error","message":"{n}","attempt":{n}}}' for n in range(20)) + "]"
    task_id = rows.put("paused, pause", errors=errors)

    client.cancel_task(task_id)

    messages = [entry["message"] for entry in client.get_task(task_id).errors]
    assert messages == [str(n) for n in range(1, 20)] + ["cancelled by a user"]


def test_cancelling_many_gives_each_its_own_errors(client: Client, rows: Rows) -> None:
    ids = [rows.put("pending, run", errors=f'[{{"kind":"error","message":"{n}"}}]') for n in range(3)]

    assert client.cancel_tasks(user="alice") == 3

    assert [[entry["message"] for entry in client.get_task(each).errors] for each in ids] == [
        [str(n), "cancelled by a user"] for n in range(3)
    ]


def test_deleting_a_task_drops_its_time_and_gives_clean_up_its_own_attempts(client: Client, rows: Rows) -> None:
    timer = rows.put("pending, run", queue=None, due_at=FAR_AHEAD, run_at=FAR_AHEAD, attempt=4, losses=2, key_name="k")
    ended = rows.put("failed, run", purge_at=FAR_AHEAD, attempt=4, losses=2)

    client.delete_task(timer)
    client.delete_task(ended)

    for task_id in (timer, ended):
        row = rows.get(task_id)
        assert (row.queue, row.due_at, row.run_at, row.purge_at) == ("delete", None, None, None)
        assert (row.attempt, row.losses) == (1, 0)
        assert faults(row) == []


# --- restart=, now=


RESTARTED = ("init, none", "pending, run", "paused, run", "paused, pause", "failed, run")


@pytest.mark.parametrize("status", RESTARTED)
def test_restart_puts_the_context_back_to_the_arguments(client: Client, rows: Rows, status: str) -> None:
    told: dict[str, Any] = {"context": '{"at":5}', "progress": 0.5, "message": "half", "result": "1", "version": 3}
    task_id = rows.put(status, seq=5, epoch=2, **told)

    client.run_task(task_id, restart=True)

    task = client.get_task(task_id)
    assert task.context == task.arguments == {"n": 1}
    assert (task.progress, task.message, task.result, task.version) == (None, None, None, 0)
    assert (task.seq, task.epoch) == (5, 2)
    assert faults(rows.get(task_id)) == []


@pytest.mark.parametrize("status", [status for status in STATUSES if status not in RESTARTED])
def test_restart_is_refused_while_a_node_runs_the_task_and_where_run_is(
    client: Client, rows: Rows, status: str
) -> None:
    rows.put(status, context='{"at":5}')
    before = kept(rows)

    with pytest.raises(InvalidTransition):
        client.run_task(before[0].id, restart=True)

    assert kept(rows) == before


@pytest.mark.parametrize("status", ["init, none", "pending, run", "paused, pause", "failed, run"])
def test_now_drops_a_time_that_lies_ahead(client: Client, rows: Rows, status: str) -> None:
    task_id = rows.put(
        status, run_at=FAR_AHEAD, **({"due_at": FAR_AHEAD, "queue": None} if "pending" in status else {})
    )

    client.run_task(task_id, now=True)

    row = rows.get(task_id)
    assert (row.queue, row.due_at, row.run_at) == ("run", None, None)
    assert row.ready_at > LONG_AGO + timedelta(days=365)


@pytest.mark.parametrize("status", ["pending, run", "paused, run"])
def test_now_does_not_send_a_claimable_task_to_the_back_of_its_queue(client: Client, rows: Rows, status: str) -> None:
    task_id = rows.put(status, ready_at=LONG_AGO)

    client.run_task(task_id, now=True)

    assert rows.get(task_id).ready_at == LONG_AGO
    assert rows.get(task_id).queue == "run"


def test_now_leaves_a_suspect_on_probation(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", losses=2, run_at=FAR_AHEAD, due_at=FAR_AHEAD, queue=None)

    client.run_task(task_id, now=True)

    assert rows.get(task_id).queue == "probation"


# --- delete_task(force=True)


@pytest.mark.parametrize("status", STATUSES)
def test_force_removes_whatever_no_live_node_runs(client: Client, rows: Rows, status: str) -> None:
    other = rows.put("pending, run")
    task_id = rows.put(status)
    rows.join(new_id(), "elsewhere")

    client.delete_task(task_id, force=True)

    assert rows.get(task_id) is None
    assert rows.get(other) is not None


@pytest.mark.parametrize("status", STATUSES)
def test_force_removes_what_a_lost_node_ran(client: Client, rows: Rows, status: str) -> None:
    rows.join()
    rows.lose()
    task_id = rows.put(status)

    client.delete_task(task_id, force=True)

    assert rows.get(task_id) is None


@pytest.mark.parametrize("status", ["running, run", "running, delete", "running, pause", "deleting, delete"])
def test_force_is_refused_while_a_live_node_runs_the_task(client: Client, rows: Rows, status: str) -> None:
    rows.join()
    task_id = rows.put(status)
    before = kept(rows)

    with pytest.raises(InvalidTransition) as caught:
        client.delete_task(task_id, force=True)

    assert caught.value.task_id == task_id
    assert caught.value.status == tuple(status.split(", "))
    assert kept(rows) == before


def test_force_of_an_unknown_task_says_so(client: Client) -> None:
    with pytest.raises(TaskNotFound):
        client.delete_task(UNKNOWN, force=True)


# --- another user's task


SINGLE: dict[str, Callable[[Client, UUID, str], object]] = {
    "get_task": lambda client, id, user: client.get_task(id, user=user),
    "get_task, include_deleting": lambda client, id, user: client.get_task(id, user=user, include_deleting=True),
    "why": lambda client, id, user: client.why(id, user=user),
    "run_task": lambda client, id, user: client.run_task(id, user=user),
    "run_task, now": lambda client, id, user: client.run_task(id, now=True, user=user),
    "run_task, restart": lambda client, id, user: client.run_task(id, restart=True, user=user),
    "pause_task": lambda client, id, user: client.pause_task(id, user=user),
    "cancel_task": lambda client, id, user: client.cancel_task(id, user=user),
    "delete_task": lambda client, id, user: client.delete_task(id, user=user),
    "delete_task, force": lambda client, id, user: client.delete_task(id, force=True, user=user),
    "change_task_group": lambda client, id, user: client.change_task_group(id, "night", user=user),
    "wait_task": lambda client, id, user: client.wait_task(id, 0, user=user),
    "result": lambda client, id, user: client.result(id, 0, user=user),
    "watch_task": lambda client, id, user: next(client.watch_task(id, user=user)),
}


@pytest.mark.parametrize("verb", SINGLE)
def test_another_users_task_is_not_found_and_not_changed(client: Client, rows: Rows, verb: str) -> None:
    ids = [rows.put(status) for status in STATUSES]
    before = kept(rows)

    for task_id in ids:
        for stranger in ("bob", "Alice", "alice ", ""):
            with pytest.raises(TaskNotFound) as caught:
                SINGLE[verb](client, task_id, stranger)
            assert caught.value.task_id == task_id

    assert kept(rows) == before


@pytest.mark.parametrize("verb", SINGLE)
def test_an_unknown_task_is_not_found(client: Client, verb: str) -> None:
    with pytest.raises(TaskNotFound):
        SINGLE[verb](client, UNKNOWN, "alice")


@pytest.mark.databases("sqlite")  # it never gets as far as the database
@pytest.mark.parametrize("verb", SINGLE)
@pytest.mark.parametrize(
    ("user", "error"), [("a\0", BadArgument), ("\ud800", BadArgument), (5, BadArgument), ("u" * 256, NameTooLong)]
)
def test_a_user_that_no_row_can_have_is_a_bad_argument(
    client: Client, verb: str, user: Any, error: type[PyasyncError]
) -> None:
    with pytest.raises(error, match="user"):
        SINGLE[verb](client, UNKNOWN, user)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("verb", SINGLE)
@pytest.mark.parametrize("id", ["nonsense", 5, None, b"x" * 16])
def test_an_id_that_is_none_is_a_bad_argument(client: Client, verb: str, id: Any) -> None:
    with pytest.raises(BadArgument, match="a task's id is a UUID"):
        SINGLE[verb](client, id, "alice")


def test_a_user_finds_and_changes_their_own_task(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")

    client.pause_task(task_id, user="alice")

    assert client.get_task(task_id, user="alice").state is State.PAUSED


def test_an_id_may_be_text(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")

    assert client.get_task(str(task_id)).id == task_id  # type: ignore[arg-type]


# --- groups


@pytest.mark.parametrize("status", STATUSES)
def test_any_task_that_is_not_on_its_way_out_can_change_its_group(client: Client, rows: Rows, status: str) -> None:
    task_id = rows.put(status, group_name="day")
    before = rows.get(task_id)

    if status in HIDDEN:
        with pytest.raises(TaskNotFound):
            client.change_task_group(task_id, "night")
        assert changes(before, rows.get(task_id)) == {}
        return
    client.change_task_group(task_id, "night")

    assert changes(before, rows.get(task_id)) == {"group_name": "night"}


@pytest.mark.parametrize(("group", "error"), [("g" * 256, NameTooLong), ("a\0", BadArgument), (None, BadArgument)])
def test_a_group_that_no_row_can_have_is_a_bad_argument(
    client: Client, rows: Rows, group: Any, error: type[PyasyncError]
) -> None:
    task_id = rows.put("pending, run")

    with pytest.raises(error, match="group"):
        client.change_task_group(task_id, group)

    assert rows.get(task_id).group_name == ""


# --- seeing


def test_what_people_see_of_each_status(client: Client, rows: Rows) -> None:
    ids = {status: rows.put(status) for status in STATUSES}

    seen = {status: shown(client, task_id) for status, task_id in ids.items()}
    with_deleting = {status: client.get_task(task_id, include_deleting=True).state for status, task_id in ids.items()}

    assert seen == {
        "init, none": "INIT",
        "pending, run": "PENDING",
        "pending, delete": None,
        "running, run": "RUNNING",
        "running, delete": "CANCELING",
        "running, pause": "CANCELING",
        "running, cancel": "CANCELING",
        "deleting, delete": None,
        "paused, run": "RUNNING",
        "paused, delete": None,
        "paused, pause": "PAUSED",
        "finished, run": "FINISHED",
        "failed, run": "FAILED",
        "failed, delete": "FAILED",
    }
    assert with_deleting == {status: seen[status] or "DELETING" for status in STATUSES}


def shown(client: Client, task_id: UUID) -> str | None:
    try:
        return client.get_task(task_id).state
    except TaskNotFound:
        return None


def test_lists_and_counts_leave_out_what_is_on_its_way_out(client: Client, rows: Rows) -> None:
    for status in STATUSES:
        rows.put(status)
    states = {"INIT": 1, "PENDING": 1, "RUNNING": 2, "CANCELING": 3, "PAUSED": 1, "FINISHED": 1, "FAILED": 2}

    assert client.count_tasks() == states
    assert client.count_tasks(include_deleting=True) == states | {"DELETING": 3}
    assert len(client.get_tasks()) == 11
    assert len(client.get_tasks(include_deleting=True)) == 14
    for state, number in states.items():
        assert [task.state for task in client.get_tasks(states=[state])] == [state] * number
        assert client.count_tasks(states=[state]) == {state: number}
    assert len(client.get_tasks(states=["DELETING"], include_deleting=True)) == 3


def test_counting_nothing_is_an_empty_count(client: Client) -> None:
    assert client.count_tasks() == {}
    assert client.get_tasks() == []


def test_a_task_that_ended_well_shows_no_error_though_earlier_attempts_failed(client: Client, rows: Rows) -> None:
    task_id = rows.put("finished, run", errors='[{"message":"boom"}]', result="5")

    task = client.get_task(task_id)

    assert (task.error, task.errors, task.result) == (None, [{"message": "boom"}], 5)


# --- filters


def test_each_filter_selects_by_its_column(client: Client, rows: Rows) -> None:
    day = timedelta(days=1)
    plain = rows.put("pending, run", created_at=LONG_AGO)
    other = rows.put(
        "failed, run",
        user_name="bob",
        group_name="g",
        type="other",
        created_at=LONG_AGO + day,
        done_at=LONG_AGO + 2 * day,
    )
    filters: list[tuple[dict[str, Any], list[UUID]]] = [
        ({"user": "alice"}, [plain]),
        ({"user": "bob"}, [other]),
        ({"user": ""}, []),
        ({"group": "g"}, [other]),
        ({"group": ""}, [plain]),
        ({"types": ["report"]}, [plain]),
        ({"types": ["report", "other"]}, [other, plain]),
        ({"types": []}, []),
        ({"states": ["failed"]}, [other]),
        ({"states": [State.PENDING, "FAILED"]}, [other, plain]),
        ({"states": []}, []),
        ({"ids": [plain]}, [plain]),
        ({"ids": [str(plain), other, UNKNOWN]}, [other, plain]),
        ({"ids": set()}, []),
        ({"created_after": LONG_AGO}, [other]),
        ({"created_after": LONG_AGO - day, "created_before": LONG_AGO + day}, [plain]),
        ({"created_before": LONG_AGO}, []),
        ({"done_after": LONG_AGO}, [other]),
        ({"done_before": LONG_AGO + 2 * day}, []),
        ({"done_after": LONG_AGO + day, "done_before": LONG_AGO + 3 * day}, [other]),
        ({"user": "bob", "group": "g", "types": ["other"], "states": ["FAILED"], "ids": [other]}, [other]),
        ({"user": "bob", "group": ""}, []),
    ]

    for wanted, expected in filters:
        assert [task.id for task in client.get_tasks(**wanted)] == expected, wanted
        assert sum(client.count_tasks(**wanted).values()) == len(expected), wanted


BAD_FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"user": 5}, "user must be text"),
    ({"user": "a\0"}, "user must not contain NUL"),
    ({"group": "g\0"}, "group must not contain NUL"),
    ({"types": "report"}, "types is a list"),
    ({"types": ["a\0"]}, "types must not contain NUL"),
    ({"types": [5]}, "types must be text"),
    ({"states": "FAILED"}, "states is a list"),
    ({"states": ["NOPE"]}, "no state 'NOPE'"),
    ({"states": [5]}, "no state 5"),
    ({"ids": UNKNOWN}, "ids is a list"),
    ({"ids": ["x"]}, "a task's id is a UUID"),
    ({"ids": [UNKNOWN] * 10_001}, "ids has 10001 entries, 10000 are allowed"),
    ({"created_after": datetime(2030, 1, 1)}, "created_after has no time zone"),
    ({"created_before": "2030"}, "created_before is a datetime"),
    ({"done_after": 5}, "done_after is a datetime"),
    ({"done_before": datetime.min.replace(tzinfo=UTC)}, "done_before must be in a year"),
]
PAGING: list[tuple[dict[str, Any], str]] = [
    ({"limit": 0}, "limit is a whole number from 1"),
    ({"limit": 10_001}, "limit is a whole number from 1 to 10000"),
    ({"limit": True}, "limit is a whole number"),
    ({"offset": -1}, "offset is a whole number from 0"),
    ({"offset": 1.5}, "offset is a whole number from 0"),
    ({"after": "x"}, "a task's id is a UUID"),
]


@pytest.mark.databases("sqlite")  # it never gets as far as the database
@pytest.mark.parametrize(("wanted", "message"), BAD_FILTERS)
def test_a_bad_filter_is_refused_by_every_verb_that_takes_one(
    client: Client, rows: Rows, wanted: dict[str, Any], message: str
) -> None:
    rows.put("pending, run")
    before = kept(rows)

    for verb in ("get_tasks", "count_tasks", "run_tasks", "pause_tasks", "cancel_tasks", "delete_tasks"):
        with pytest.raises(BadArgument, match=message):
            getattr(client, verb)(**wanted)

    assert kept(rows) == before


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(("wanted", "message"), PAGING)
def test_a_bad_page_is_refused(client: Client, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        client.get_tasks(**wanted)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("verb", ["count_tasks", "run_tasks", "pause_tasks", "cancel_tasks", "delete_tasks"])
def test_a_filter_that_does_not_exist_is_refused_and_never_means_everything(
    client: Client, rows: Rows, verb: str
) -> None:
    rows.put("pending, run")
    before = kept(rows)

    for unknown in ("usr", "limit", "offset", "after", "type"):
        with pytest.raises(BadArgument, match=f"no filter '{unknown}'"):
            getattr(client, verb)(**{unknown: "x"})

    assert kept(rows) == before


def test_ten_thousand_ids_are_one_filter(client: Client, rows: Rows) -> None:
    wanted = rows.put("pending, run")

    found = client.get_tasks(ids=[wanted, *(new_id() for _ in range(9_999))])

    assert [task.id for task in found] == [wanted]


# --- pages


def test_tasks_are_listed_newest_first(client: Client) -> None:
    ids = [client.create_task("report") for _ in range(5)]

    assert [task.id for task in client.get_tasks()] == ids[::-1]


def test_tasks_of_one_moment_are_listed_by_their_ids_newest_first(client: Client, rows: Rows) -> None:
    ids = rows.put_many(5, created_at=LONG_AGO)

    assert [task.id for task in client.get_tasks()] == ids[::-1]


def test_pages_by_offset_and_by_after_cover_every_task_once(client: Client, rows: Rows) -> None:
    rows.put_many(4, created_at=LONG_AGO)
    client.create_tasks([NewTask(type="report")] * 7)
    rows.put_many(4, created_at=LONG_AGO + timedelta(microseconds=1))
    everything = [task.id for task in client.get_tasks()]

    by_offset = [[task.id for task in client.get_tasks(offset=start, limit=4)] for start in range(0, 20, 4)]
    by_after, last = [], None
    while page := [task.id for task in client.get_tasks(after=last, limit=4)]:
        by_after.append(page)
        last = page[-1]
        assert len(by_after) < 10

    assert len(everything) == len(set(everything)) == 15
    assert by_offset == [everything[:4], everything[4:8], everything[8:12], everything[12:], []]
    assert by_after == by_offset[:4]


def test_a_page_goes_on_though_newer_tasks_have_come(client: Client) -> None:
    old = [client.create_task("report") for _ in range(4)]
    first = client.get_tasks(limit=2)
    client.create_task("report")

    second = client.get_tasks(limit=2, after=first[-1].id)

    assert [task.id for task in first + second] == old[::-1]


def test_pages_go_by_the_filter(client: Client) -> None:
    ids = [client.create_task("report", user=user) for user in ("a", "b") * 3]

    page = client.get_tasks(user="a", limit=2, after=ids[4])

    assert [task.id for task in page] == [ids[2], ids[0]]


def test_a_page_after_a_task_that_is_gone_says_so(client: Client) -> None:
    with pytest.raises(TaskNotFound) as caught:
        client.get_tasks(after=UNKNOWN)

    assert caught.value.task_id == UNKNOWN


def test_a_task_may_be_found_by_the_beginning_of_its_id(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")
    rows.put("pending, run", id=UUID(int=1))

    assert client.find_ids(str(task_id)[:20].upper()) == [task_id]
    assert client.find_ids("ffff") == []


# --- bulk verbs


@pytest.mark.parametrize("verb", VERBS)
def test_a_bulk_verb_changes_what_the_table_allows_and_skips_the_rest(client: Client, rows: Rows, verb: str) -> None:
    ids = {status: rows.put(status) for status in STATUSES}
    before = {status: rows.get(task_id) for status, task_id in ids.items()}
    expected = outcomes(verb)

    changed = getattr(client, f"{verb}s")(user="alice")

    assert changed == sum(outcome not in ("same", "refused") for outcome in expected.values())
    for status, outcome in expected.items():
        after = rows.get(ids[status])
        if outcome == "removed":
            assert after is None
        elif outcome in ("same", "refused"):
            assert changes(before[status], after) == {}, status
        else:
            assert rows.status(ids[status]) == outcome
            assert faults(after) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_bulk_verb_does_to_one_status_what_the_single_verb_does(client: Client, rows: Rows, verb: str) -> None:
    times = ("ready_at", "done_at", "purge_at", "id", "created_at", "errors", "fence")
    told: dict[str, Any] = {"losses": 2, "attempt": 3, "run_at": FAR_AHEAD, "key_name": "k", "keep": 5.0}
    for status, outcome in outcomes(verb).items():
        if outcome in ("same", "refused", "removed"):
            continue
        one, many = (rows.put(status, **told, user_name=user) for user in ("alice", "bob"))
        before = rows.get(one), rows.get(many)

        getattr(client, verb)(one)
        getattr(client, f"{verb}s")(ids=[many])

        alone, in_bulk = (changes(old, rows.get(old.id)) for old in before)
        assert alone.keys() == in_bulk.keys()
        assert {name: alone[name] for name in alone if name not in times} == {
            name: in_bulk[name] for name in in_bulk if name not in times
        }
        client.delete_task(one)
        client.delete_task(many)


@pytest.mark.parametrize("verb", ["run_tasks", "pause_tasks", "cancel_tasks", "delete_tasks"])
def test_a_bulk_verb_without_a_filter_is_refused(client: Client, rows: Rows, verb: str) -> None:
    for status in STATUSES:
        rows.put(status)
    before = kept(rows)

    for nothing in ({}, {"user": None}, {"include_deleting": True}, {"ids": None, "states": None, "everything": False}):
        with pytest.raises(BadArgument, match=f"{verb}\\(\\) needs a filter, or everything=True"):
            getattr(client, verb)(**nothing)

    assert kept(rows) == before


def test_everything_is_everybodys_tasks(client: Client, rows: Rows) -> None:
    rows.put("pending, run", user_name="alice")
    rows.put("pending, run", user_name="bob")

    assert client.pause_tasks(everything=True) == 2
    assert client.count_tasks() == {"PAUSED": 2}


def test_a_filter_bounds_everything(client: Client, rows: Rows) -> None:
    rows.put("pending, run", user_name="alice")
    rows.put("pending, run", user_name="bob")

    assert client.pause_tasks(everything=True, user="bob") == 1


@pytest.mark.parametrize("empty", [{"ids": []}, {"states": []}, {"types": []}])
def test_an_empty_list_selects_nothing(client: Client, rows: Rows, empty: dict[str, Any]) -> None:
    rows.put("pending, run")

    assert client.delete_tasks(**empty) == 0
    assert len(rows.all()) == 1


def test_a_bulk_of_more_than_a_batch_changes_all(client: Client, rows: Rows) -> None:
    ids = rows.put_many(2_001)

    assert client.pause_tasks(types=["report"]) == 2_001
    assert client.count_tasks() == {"PAUSED": 2_001}
    assert client.cancel_tasks(ids=ids[:10]) == 10


def test_a_bulk_verb_locks_a_thousand_rows_at_a_time(client: Client, rows: Rows) -> None:
    rows.put_many(1_001)

    with recorded(client._database.engine) as statements:
        client.pause_tasks(user="alice")

    updates = [sql for sql, _ in statements if sql.startswith("UPDATE") and "stage" in sql.partition("WHERE")[0]]
    assert len(updates) == 2


# --- waiting


def test_waiting_for_a_task_that_has_ended_returns_it(client: Client, rows: Rows) -> None:
    finished = rows.put("finished, run", result='{"a":1}')

    assert client.wait_task(finished).state is State.FINISHED
    assert client.result(finished) == {"a": 1}
    assert [task.state for task in client.watch_task(finished)] == ["FINISHED"]


def test_waiting_ends_after_its_timeout(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")

    with pytest.raises(TimeoutError, match="is still PENDING after 0 seconds"):
        client.wait_task(task_id, timeout=0)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_timeout_is_a_number_of_seconds(client: Client, rows: Rows, timeout: Any) -> None:
    task_id = rows.put("pending, run")

    with pytest.raises(BadArgument, match="timeout must be a number of seconds"):
        client.wait_task(task_id, timeout=timeout)


def test_a_running_task_that_is_deleted_still_belongs_to_its_node(client: Client, rows: Rows) -> None:
    task_id = rows.put("running, run")

    client.delete_task(task_id)

    assert rows.get(task_id).node_id == NODE
