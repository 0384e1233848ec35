from __future__ import annotations

import dataclasses
import logging
import os
import socket
from typing import Any

import pytest

from pyasync.errors import SettingInvalid
from pyasync.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("PYASYNC_"):
            monkeypatch.delenv(variable)


def test_defaults_are_those_of_the_manual() -> None:
    assert dataclasses.asdict(Settings(name="n")) == {
        "concurrency": 10,
        "delete_concurrency": 5,
        "lease": 15.0,
        "poll_interval": 1.0,
        "stop_grace": 10.0,
        "schema": None,
        "name": "n",
        "types": None,
        "groups": None,
        "max_context_bytes": 1_048_576,
        "max_depth": 64,
        "migrate": None,
        "queue": None,
        "delete_queue": None,
        "pooled": False,
        "strict": True,
        "stall_after": 2.0,
        "fast_detection": True,
        "connections": 4,
        "database_timeout": 30.0,
    }


def test_node_is_named_after_host_and_process_by_default() -> None:
    assert Settings().name == f"{socket.gethostname()}:{os.getpid()}"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().lease = 3.0  # type: ignore[misc]


def test_names_become_a_frozenset_and_seconds_floats() -> None:
    settings = Settings.load(types=["a", "b", "a"], groups=("", "g"), lease=5)

    assert settings.types == frozenset({"a", "b"})
    assert settings.groups == frozenset({"", "g"})
    assert isinstance(settings.lease, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", True),
        ("concurrency", 2.5),
        ("concurrency", "10"),
        ("concurrency", None),
        ("delete_concurrency", 0),
        ("lease", 0.9),
        ("lease", float("nan")),
        ("lease", float("inf")),
        ("lease", True),
        ("lease", "15"),
        ("poll_interval", 0),
        ("stop_grace", -1),
        ("schema", ""),
        ("schema", "1a"),
        ("schema", "a-b"),
        ("schema", 'a"; DROP TABLE x'),
        ("schema", "a\n"),
        ("schema", "a" * 64),
        ("schema", 5),
        ("name", ""),
        ("name", "a\0b"),
        ("name", "n" * 256),
        ("name", 5),
        ("types", "report.build"),
        ("types", [""]),
        ("types", [5]),
        ("types", 5),
        ("groups", "g"),
        ("groups", ["g\0"]),
        ("max_context_bytes", 0),
        ("max_depth", 0),
        ("max_depth", 201),
        ("migrate", "always"),
        ("pooled", 1),
        ("strict", "no"),
        ("stall_after", 0),
        ("fast_detection", None),
        ("connections", 3),
        ("database_timeout", 0),
    ],
)
def test_value_that_a_setting_cannot_have_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings(**{name: value})

    assert caught.value.name == name


@pytest.mark.parametrize("schema", ["a", "_a9", "A" * 63])
def test_schema_may_be_any_plain_identifier(schema: str) -> None:
    assert Settings(schema=schema).schema == schema


def test_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings.load(concurency=3)

    assert (caught.value.name, caught.value.nearest) == ("concurency", "concurrency")


def test_unknown_setting_that_resembles_none_has_no_nearest_name() -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings.load(zzz=3)

    assert caught.value.nearest is None


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "CONCURRENCY": "3",
        "DELETE_CONCURRENCY": "4",
        "LEASE": "5",
        "POLL_INTERVAL": "0.5",
        "STOP_GRACE": "0",
        "SCHEMA": "jobs",
        "NAME": "blue",
        "TYPES": "a, b,",
        "GROUPS": "g",
        "MAX_CONTEXT_BYTES": "100",
        "MAX_DEPTH": "7",
        "MIGRATE": "off",
        "POOLED": "yes",
        "STRICT": "False",
        "STALL_AFTER": "9",
        "FAST_DETECTION": "0",
        "DATABASE_TIMEOUT": "8",
    }
    for name, text in environment.items():
        monkeypatch.setenv(f"PYASYNC_{name}", text)

    assert Settings.load() == Settings(
        concurrency=3,
        delete_concurrency=4,
        lease=5.0,
        poll_interval=0.5,
        stop_grace=0.0,
        schema="jobs",
        name="blue",
        types=frozenset({"a", "b"}),
        groups=frozenset({"g"}),
        max_context_bytes=100,
        max_depth=7,
        migrate="off",
        pooled=True,
        strict=False,
        stall_after=9.0,
        fast_detection=False,
        database_timeout=8.0,
    )


def test_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_LEASE", "5")

    assert Settings.load(lease=7).lease == 7.0


def test_override_wins_over_an_environment_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_LEASE", "soon")

    assert Settings.load(lease=7).lease == 7.0


def test_variable_set_to_nothing_is_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_TYPES", "")
    monkeypatch.setenv("PYASYNC_LEASE", " ")

    assert Settings.load(name="n") == Settings(name="n")


@pytest.mark.parametrize(("name", "text"), [("LEASE", "soon"), ("CONCURRENCY", "1.5"), ("POOLED", "maybe")])
def test_variable_that_cannot_be_read_is_refused_with_its_text(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"PYASYNC_{name}", text)

    with pytest.raises(SettingInvalid, match=f"PYASYNC_{name}='{text}'"):
        Settings.load()


def test_variable_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_LEASE", "0.5")

    with pytest.raises(SettingInvalid, match="from 1 up"):
        Settings.load()


def test_misspelt_variable_is_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PYASYNC_CONCURENCY", "3")

    with caplog.at_level(logging.WARNING, "pyasync.settings"):
        Settings.load()

    assert [vars(record)["nearest"] for record in caplog.records] == ["concurrency"]


@pytest.mark.parametrize("variable", ["PYASYNC_DATABASE_URL", "PYASYNC_APP", "PYASYNC_TEST_TYPES", "PYASYNC_ZZZ"])
def test_variable_of_somebody_else_is_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    monkeypatch.setenv(variable, "x")

    assert Settings.load(name="n") == Settings(name="n")
    assert caplog.records == []


def test_queue_cannot_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_QUEUE", "Fifo")

    assert Settings.load().queue is None
