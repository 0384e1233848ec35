"""README.md and docs/: every Python block runs, and what is generated is up to date."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyasync.domain.transitions import mermaid

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN_TESTS = """
from pathlib import Path as _Path
for _name, _test in list(globals().items()):
    if _name.startswith("test_"):
        _test(*[_Path.cwd()] * _test.__code__.co_argcount)
"""
"""What pytest would do with the tests on a page; their one fixture is tmp_path."""


def code_of(page: Path) -> str:
    """The Python blocks of a page as one program, each line where it is on the page."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        inside = line == "```python" if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines) + RUN_TESTS


def run(page: Path, folder: Path) -> str:
    program = folder / f"{page.stem}.py"
    program.write_text(code_of(page))
    command = [sys.executable, "-W", "error", program.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, f"{page.name}, the lines are the page's:\n{done.stderr}"
    return done.stdout


def test_what_the_pages_say_of_tests_is_there() -> None:
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", page.read_text())
    }

    assert len(named) > 30
    for page, name in named:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "tests" / "faults")), f"{page}: {name}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path)


def test_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    printed = run(ROOT / "README.md", tmp_path).splitlines()

    assert printed[:3] == ["{'i': 10}", "ada wrote 'hello' to bob Ada Lovelace", "[('ada', 300), ('bob', 300)]"]
    assert printed[-1] == "FINISHED 1.0 page 5"


@pytest.mark.parametrize("page", ["README.md", "docs/states.md"])
def test_the_diagram_of_states_is_the_table_s(page: str) -> None:
    assert f"```mermaid\n{mermaid()}\n```\n" in (ROOT / page).read_text()


def test_generated_parts_are_up_to_date() -> None:
    stale = [path.name for path, text in generate().pages() if path.read_text() != text]

    assert stale == [], "run python docs/generate.py"


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(generate().UNITS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", text)]
    paths = [ROOT / target for target in re.findall(r"`((?:docs|examples|pyasync|tests)/[\w./]*)`", text)]

    assert [path for path in links + paths if not path.exists()] == []


def generate() -> ModuleType:
    """Import docs/generate.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
