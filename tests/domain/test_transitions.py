"""The table of states, against the one of the design, cell by cell, and what must hold of any such table."""

from __future__ import annotations

import re
from uuid import UUID

import pytest

from pyasync.domain.states import ENDED, OWNED, Event, Mark, Stage, State, Status
from pyasync.domain.transitions import TABLE, changed_by, mermaid, sources, state_of, statuses_of, step
from pyasync.errors import InvalidTransition

# As the design has it: "-" is an empty cell, "removed" removes the row, "same" is a no-op.
DESIGN = """
status           | user_run     | user_delete     | user_pause     | user_cancel     | sys_execute      | sys_pause       | task_finished   | task_failed     | sys_retry
init, none       | pending, run | removed         | paused, pause  | failed, run     | -                | -               | -               | -               | -
pending, run     | same         | pending, delete | paused, pause  | failed, run     | running, run     | -               | -               | -               | -
pending, delete  | -            | same            | -              | -               | deleting, delete | -               | -               | -               | -
running, run     | same         | running, delete | running, pause | running, cancel | -                | paused, run     | finished, run   | failed, run     | pending, run
running, delete  | -            | same            | -              | -               | -                | pending, delete | pending, delete | pending, delete | pending, delete
running, pause   | running, run | running, delete | same           | running, cancel | -                | paused, pause   | finished, run   | failed, run     | paused, pause
running, cancel  | -            | running, delete | -              | same            | -                | failed, run     | finished, run   | failed, run     | failed, run
deleting, delete | -            | same            | -              | -               | -                | paused, delete  | removed         | failed, delete  | pending, delete
paused, run      | same         | pending, delete | paused, pause  | failed, run     | running, run     | -               | -               | -               | -
paused, delete   | -            | same            | -              | -               | deleting, delete | -               | -               | -               | -
paused, pause    | pending, run | pending, delete | same           | failed, run     | -                | -               | -               | -               | -
finished, run    | -            | pending, delete | -              | -               | -                | -               | -               | -               | -
failed, run      | pending, run | pending, delete | -              | -               | -                | -               | -               | -               | -
failed, delete   | -            | pending, delete | -              | -               | -                | -               | -               | -               | -
"""  # noqa: E501 - a table is read as a table

# What people see of each status.
SHOWN = {
    "init, none": State.INIT,
    "pending, run": State.PENDING,
    "pending, delete": State.DELETING,
    "running, run": State.RUNNING,
    "running, delete": State.CANCELING,
    "running, pause": State.CANCELING,
    "running, cancel": State.CANCELING,
    "deleting, delete": State.DELETING,
    "paused, run": State.RUNNING,
    "paused, delete": State.DELETING,
    "paused, pause": State.PAUSED,
    "finished, run": State.FINISHED,
    "failed, run": State.FAILED,
    "failed, delete": State.FAILED,
}

START = ("init, none", "pending, run")
PEOPLE = (Event.USER_RUN, Event.USER_DELETE, Event.USER_PAUSE, Event.USER_CANCEL)


def status(text: str) -> Status:
    stage, mark = text.split(", ")
    return Status(Stage(stage), Mark(mark))


def cells() -> list[tuple[str, str, str]]:
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in DESIGN.strip().splitlines())
    return [(line[0], event, cell) for line in lines for event, cell in zip(head[1:], line[1:], strict=True)]


def reachable(start: Status) -> set[Status]:
    """All statuses that a task can get into, the first included."""
    found, ahead = {start}, [start]
    while ahead:
        for target in TABLE[ahead.pop()].values():
            if target is not None and target not in found:
                found.add(target)
                ahead.append(target)
    return found


@pytest.mark.parametrize(("before", "event", "after"), cells())
def test_every_cell_is_the_designs(before: str, event: str, after: str) -> None:
    if after == "-":
        with pytest.raises(InvalidTransition):
            step(status(before), Event(event))
        return
    expected = {"removed": None, "same": status(before)}.get(after) if after in ("removed", "same") else status(after)

    assert step(status(before), Event(event)) == expected


def test_the_grid_has_every_status_and_event() -> None:
    grid = cells()

    assert len(grid) == 14 * 9
    assert {event for _, event, _ in grid} == {event.value for event in Event}
    assert {status(before) for before, _, _ in grid} == set(TABLE)


def test_a_refused_step_carries_its_facts() -> None:
    task_id = UUID(int=7)

    with pytest.raises(InvalidTransition) as caught:
        step(status("finished, run"), Event.USER_PAUSE, task_id)

    assert caught.value.task_id == task_id
    assert caught.value.status == ("finished", "run")
    assert caught.value.event == "user_pause"
    assert "(finished, run), which does not allow user_pause" in str(caught.value)


def test_every_status_can_be_reached_from_creation() -> None:
    assert set.union(*(reachable(status(start)) for start in START)) == set(TABLE)


def test_no_step_leads_out_of_the_table() -> None:
    targets = {target for row in TABLE.values() for target in row.values() if target is not None}

    assert targets <= set(TABLE)


@pytest.mark.parametrize("before", TABLE, ids=str)
def test_every_status_can_be_deleted_by_a_user_and_leads_to_removal(before: Status) -> None:
    """I10: nothing is stuck for ever, and nothing is undeletable (go-async: failed, delete)."""
    assert Event.USER_DELETE in TABLE[before]
    assert any(None in TABLE[each].values() for each in reachable(before))


@pytest.mark.parametrize("before", TABLE, ids=str)
def test_no_status_but_an_ended_one_is_absorbing(before: Status) -> None:
    ways_out = [event for event, target in TABLE[before].items() if target != before]

    assert ways_out
    if before.stage not in ENDED:
        assert [event for event in ways_out if event is not Event.USER_DELETE]


@pytest.mark.parametrize("before", TABLE, ids=str)
def test_every_status_is_visible_or_on_its_way_out(before: Status) -> None:
    """I10: what people do not see goes away by itself, without anybody asking for it."""
    if state_of(before) is not State.DELETING:
        return

    by_nodes = {event: target for event, target in TABLE[before].items() if event not in PEOPLE}

    assert by_nodes
    assert before.mark is Mark.DELETE


@pytest.mark.parametrize("before", TABLE, ids=str)
def test_the_mark_delete_is_never_taken_back(before: Status) -> None:
    if before.mark is Mark.DELETE:
        assert all(target is None or target.mark is Mark.DELETE for target in TABLE[before].values())


@pytest.mark.parametrize("before", TABLE, ids=str)
def test_nodes_can_let_go_of_what_they_hold_and_only_of_that(before: Status) -> None:
    """A takeover is `sys_pause`: a status in which a node holds a task and that has none would be stuck with it."""
    assert (Event.SYS_PAUSE in TABLE[before]) == (before.stage in OWNED)
    if before.stage in OWNED:
        after = step(before, Event.SYS_PAUSE)
        assert after is not None
        assert after.stage not in OWNED


@pytest.mark.parametrize(("text", "state"), SHOWN.items())
def test_what_people_see_of_a_status(text: str, state: State) -> None:
    assert state_of(status(text)) is state
    assert status(text) in statuses_of(state)


def test_every_state_is_that_of_some_status() -> None:
    assert {state for state in State if statuses_of(state)} == set(State)
    assert sum(len(statuses_of(state)) for state in State) == 14


@pytest.mark.parametrize("event", Event)
def test_sources_are_the_statuses_whose_cell_is_not_empty(event: Event) -> None:
    filled = [(before, after) for before, name, after in cells() if name == event.value and after != "-"]

    assert sources(event) == [status(before) for before, _ in filled]
    assert changed_by(event) == [status(before) for before, after in filled if after != "same"]


def test_diagram_has_every_step_and_nothing_else() -> None:
    lines = mermaid().splitlines()

    edges = {tuple(re.fullmatch(r" {4}(\S+) --> (\S+): (.+)", line).groups()) for line in lines[1:]}  # type: ignore[union-attr]
    drawn = {(source, target, event) for source, target, events in edges for event in events.split(", ")}

    assert lines[0] == "stateDiagram-v2"
    assert drawn == {("[*]", name(start), "create") for start in START} | {
        (name(before), "[*]" if after == "removed" else name(after), event)
        for before, event, after in cells()
        if after not in ("-", "same")
    }


def name(text: str) -> str:
    return text.replace(", ", "_")
