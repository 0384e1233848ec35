"""Run all benchmarks, each in a process of its own; arguments are handed on."""

from __future__ import annotations

import subprocess
import sys

QUESTIONS = ("drain", "latency")

if __name__ == "__main__":
    codes = [subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]) for name in QUESTIONS]
    sys.exit(max(codes))
