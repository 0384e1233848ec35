"""Run all benchmarks, each in a process of its own; arguments are handed on (`--full`, `--peers`, `--json FILE`)."""

from __future__ import annotations

import subprocess
import sys

QUESTIONS = (
    "drain",
    "create",
    "latency",
    "reports",
    "takeover",
    "idle",
    "scale",
    "aged",
    "memory",
    "imports",
)

if __name__ == "__main__":
    codes = [subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]) for name in QUESTIONS]
    sys.exit(max(codes))
