"""Try the protocol and every mutant, or print the shortest way to what one mutant breaks."""

from __future__ import annotations

import sys

from tests.model.mutants import COVERED, MUTANTS, PROTOCOL, SCOPES
from tests.model.search import search


def main() -> None:
    match sys.argv[1:]:
        case []:
            _overview()
        case [name] if name in MUTANTS:
            _trace(name)
        case _:
            sys.exit("usage: python -m tests.model [MUTANT]\nmutants: " + "; ".join(MUTANTS))


def _overview() -> None:
    for name, scope in SCOPES.items():
        print(f"the protocol, {name}: {search(PROTOCOL, scope)}")
    for name, mutant in (MUTANTS | COVERED).items():
        print(f"{name}: {search(mutant.rules, mutant.scope)}")


def _trace(name: str) -> None:
    verdict = search(MUTANTS[name].rules, MUTANTS[name].scope)
    for number, label in enumerate(verdict.trace, 1):
        print(f"{number:3} {label}")
    print(f"{', '.join(verdict.broken)} broken")


if __name__ == "__main__":
    main()
