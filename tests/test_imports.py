"""What importing pyasync costs."""

from __future__ import annotations

import subprocess
import sys


def test_importing_pyasync_imports_neither_alembic_nor_what_is_optional() -> None:
    unwanted = "alembic psycopg pymysql rich trio sqlalchemy.orm pydantic msgspec"
    program = f"import sys, pyasync; print([name for name in '{unwanted}'.split() if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
