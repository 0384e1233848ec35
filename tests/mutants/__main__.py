"""`python -m tests.mutants [NAME...]`: take guards out of copies of the source, and see which test notices each.

Ends with 1 if a mutant survives, and with 2 if the tests fail on the source as it is. `--list` names the mutants.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copies import Verdict, copied


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="name the mutants, and what the engine then does")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {each.name for each in MUTANTS}:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}; --list names them")
    mutants = [each for each in MUTANTS if not options.names or each.name in options.names]
    if options.list:
        for each in mutants:
            print(f"{each.name:36}{each.about}")
        return 0
    return 2 if not unpatched_passes(mutants) else run_all(mutants)


def unpatched_passes(mutants: Sequence[Mutant]) -> bool:
    """Run all the checks on the source as it is: else that they fail on a mutant means nothing."""
    for database in dict.fromkeys(each.database for each in mutants):
        checks = dict.fromkeys(check for each in mutants if each.database == database for check in each.checks)
        with copied() as copy:
            verdict = copy.check(list(checks), database)
        print(f"unpatched, {database or 'no database'}: {len(checks)} checks, {verdict.seconds:.0f} s", flush=True)
        if not verdict.passed:
            print(f"the checks fail on the source as it is\n{verdict.said}")
            return False
    return True


def run_all(mutants: Sequence[Mutant]) -> int:
    """Run each mutant; return 1 if one survives."""
    print(f"{'mutant':36}{'s':>5}  caught by")
    survivors = [each.name for each in mutants if not caught(each)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants were caught")
    for name in survivors:
        print(f"SURVIVED: {name}")
    return 1 if survivors else 0


def caught(mutant: Mutant) -> bool:
    """Run a mutant's checks, and print a line of the table; what was said, too, if it survives."""
    with copied() as copy:
        copy.patch(mutant)
        verdict = copy.check(mutant.checks, mutant.database)
    print(f"{mutant.name:36}{verdict.seconds:5.0f}  {verdict.failed if verdict.caught else how(verdict)}", flush=True)
    return verdict.caught


def how(verdict: Verdict) -> str:
    """Say how checks ended that caught nothing."""
    return f"NOBODY (pytest ended with {verdict.code})\n{verdict.said}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
