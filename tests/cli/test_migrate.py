from __future__ import annotations

from tests.cli.conftest import Run


def test_tables_are_checked_made_and_left_alone(run: Run, url: str) -> None:
    before = run("migrate", "--check", "--database", url)
    made = run("migrate", "--database", url)
    checked = run("migrate", "--check", "--database", url)
    again = run("migrate", "--database", url)

    assert before.code == 3
    assert (made.code, made.out) == (0, "created: version 0001\n")
    assert (checked.code, checked.out) == (0, "up to date: version 0001\n")
    assert (again.code, again.out) == (0, "nothing to do: version 0001\n")


def test_commands_do_not_make_tables_unasked(run: Run, url: str) -> None:
    run("migrate", "--check", "--database", url)
    ran = run("list", "--database", url)

    assert ran.code == 3
    assert ran.out == ""


def test_sql_is_written_without_a_server(run: Run) -> None:
    ran = run("migrate", "--sql", "--database", "postgresql://nobody@nowhere.invalid/db", "--schema", "jobs")

    assert ran.code == 0
    assert "CREATE TABLE jobs.pyasync_task" in ran.out
