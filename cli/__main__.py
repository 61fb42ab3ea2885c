"""The `atelier` command."""

import signal

# Until a command installs its own handlers, Ctrl-C ends the process without a traceback, also while
# the libraries below are imported.
signal.signal(signal.SIGINT, signal.SIG_DFL)

# ruff: noqa: E402
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from cli import doctor as checks
from cli import storage
from cli.setup import make_bucket, migrate_all
from cli.state import DEFAULT_STATE, LOCAL_ISSUER, WORKERS_ISSUER, State
from cli.suite import ROOT, Options, Problem, Suite, answers, interruptible, is_serving, ports
from shared import logs
from shared.rpc import auth
from shared.settings import SERVICES, Settings

app = typer.Typer(
    name="atelier",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=(
        "The back office for product imagery made with AI. Start with **atelier demo**; then"
        " **atelier up** keeps the suite running and says how to call it."
    ),
)
app.add_typer(storage.app, name="storage")
console = Console(stderr=True, highlight=False)

StateOption = Annotated[
    Path,
    typer.Option(
        "--state", help="Directory for keys, database and objects.", envvar="ATELIER_STATE"
    ),
]


def stop_with(problem: object, status: int = 1) -> typer.Exit:
    console.print(f"[bold red]atelier:[/bold red] {escape(str(problem))}", soft_wrap=True)
    return typer.Exit(status)


def report(text: str) -> None:
    """Prints one line of progress to stderr, not wrapped at the width of the terminal."""
    console.print(f"[dim]{escape(text)} ...", soft_wrap=True)


def trusted_keys(path: Path) -> list[auth.TrustedKey]:
    """Reads a trust file; ends the command if the file can't be read or has a faulty entry."""
    try:
        return auth.load_trust(path)
    except (OSError, ValueError) as problem:
        raise stop_with(problem) from None


@app.command()
def up(
    state: StateOption = DEFAULT_STATE,
    database_url: Annotated[
        str,
        typer.Option(
            help="Postgres of your own: a URL that may create roles and schemas. Default: embedded."
        ),
    ] = "",
    s3_endpoint: Annotated[
        str,
        typer.Option(
            help=(
                "Object store of your own; bucket and keys in ATELIER_S3_BUCKET, _ACCESS_KEY,"
                " _SECRET_KEY."
            )
        ),
    ] = "",
) -> None:
    """Start everything and keep it running until Ctrl-C.

    Four gRPC services, a worker, signed URLs over HTTP, the same calls over HTTP as JSON, and a
    Postgres, on loopback, with state in .atelier/. Other ports: `ATELIER_ASSETS_PORT`,
    `_CONVERSIONS_PORT`, `_PIPELINE_PORT`, `_TECHFILES_PORT`, `_STORAGE_HTTP_PORT`, `_WEB_PORT`.
    """
    suite = Suite(State(state), Options(database_url, s3_endpoint), report)
    began = time.monotonic()
    with interruptible() as stopped:
        suite.stopped = stopped
        try:
            suite.start()
        except Problem as problem:
            raise stop_with(problem) from None
        try:
            show_endpoints(time.monotonic() - began, suite)
            suite.watch(stopped)
        finally:
            report("Stopping")
            suite.stop()


def show_endpoints(seconds: float, suite: Suite) -> None:
    at = ports()
    table = Table(
        title=f"Atelier is up ({seconds:.1f} s, {suite.memory_megabytes()} MB)",
        title_justify="left",
    )
    table.add_column("service", style="bold")
    table.add_column("address")
    for name in SERVICES:
        table.add_row(name, f"127.0.0.1:{at[name]}")
    table.add_row("signed URLs", f"http://127.0.0.1:{at['storage']}")
    table.add_row("HTTP and JSON", f"http://127.0.0.1:{at['web']}")
    console.print(table)
    with_token = '-H "authorization: Bearer $TOKEN"'  # noqa: S105 - the name of a variable
    buf = f".venv/bin/buf curl --protocol grpc --http2-prior-knowledge {with_token} -d '{{}}'"
    curl = f"curl {with_token} -H 'content-type: application/json' -d '{{}}'"
    elsewhere = suite.state.directory != DEFAULT_STATE
    option = (
        f" --state {shlex.quote(str(suite.state.directory))}" if elsewhere else ""
    )  # the keys that this suite trusts are there
    calls = "\n  ".join(
        f"{buf} http://127.0.0.1:{at[name]}/atelier.{name}.v1.{call}"
        for name, call in (
            ("assets", "AssetService/ListAssets"),
            ("pipeline", "ProductService/GetSummary"),
            ("techfiles", "CollectionService/ListCollections"),
        )
    )
    console.print(
        f"\nA token, in another terminal:\n  TOKEN=$(./atelier token --user ada{option})\n\nThree"
        f" calls to paste:\n  {calls}\n\nOne by curl alone (docs/http.md):\n  {curl}"
        f" http://127.0.0.1:{at['web']}/atelier.pipeline.v1.ProductService/GetSummary\n\nThe whole"
        " job as calls is in docs/main-job.md, every call of assets in docs/assets.md; logs are in"
        f" {suite.state.logs}; `./atelier doctor{option}` checks everything; Ctrl-C stops.",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def dev(state: StateOption = DEFAULT_STATE) -> None:
    """Do what `up` does, with the logs in this terminal, and restart when a file changes."""
    from cli.dev import run

    suite = Suite(State(state), Options(), report)
    with interruptible() as stopped:
        suite.stopped = stopped
        try:
            suite.start()
        except Problem as problem:
            raise stop_with(problem) from None
        try:
            run(suite, console, stopped)
        finally:
            suite.stop()


@app.command()
def health(
    service: Annotated[str, typer.Argument(help="assets, conversions, pipeline, techfiles or web")],
) -> None:
    """Check one service of this machine, for health checks of containers. Exit status 0 if it
    answers healthy, else 1."""
    if service not in (*SERVICES, "web"):
        raise stop_with(f"no service is called {service}; there are {', '.join(SERVICES)}, web", 2)
    healthy = answers("web") if service == "web" else is_serving(ports()[service])
    raise typer.Exit(0 if healthy else 1)


@app.command()
def token(
    user: Annotated[
        str, typer.Option(help="Name of the person or program: the token's subject.")
    ] = "",
    vendor: Annotated[str, typer.Option(help="The same, for a vendor.")] = "",
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="A random owner that sees only what it makes.")
    ] = False,
    admin: Annotated[str, typer.Option(help="The same, for an operator.")] = "",
    worker: Annotated[
        str, typer.Option(help="The same, for an outside worker that serves every owner.")
    ] = "",
    owner: Annotated[
        str, typer.Option(help="The tenant acted in, such as user:ada. Default: its own.")
    ] = "",
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long it is valid.")] = 12,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print a token for the suite of this machine.

    Send it as gRPC metadata `authorization: Bearer TOKEN`.
    """
    by_chance = os.urandom(8).hex() if anonymous else ""
    named = {
        "user": user,
        "vendor": vendor,
        "admin": admin,
        "anonymous": by_chance,
        "service": worker,
    }
    chosen = [(role, subject) for role, subject in named.items() if subject]
    if len(chosen) != 1:
        raise stop_with(
            "say who: exactly one of --user NAME, --vendor NAME, --admin NAME, --worker NAME,"
            " --anonymous",
            2,
        )
    [(role, subject)] = chosen
    files = State(state)
    files.prepare()
    file, issuer = ("workers", WORKERS_ISSUER) if worker else ("people", LOCAL_ISSUER)
    key = auth.load_key(files.keys / f"{file}.jwk")
    owner = owner or f"{role}:{subject}"
    trusted = [each for each in trusted_keys(files.trust_file) if each.key.kid == key.kid]
    if not any(role in each.roles and each.may_own(role, owner) for each in trusted):
        text = (
            f"the suite would refuse a token of role {role} for owner {owner}; `atelier trust` says"
            " what keys may sign"
        )
        raise stop_with(text, 2)
    made = auth.sign(
        key, issuer=issuer, subject=subject, role=role, seconds=int(hours * 3600), owner=owner
    )
    print(made)


@app.command()
def trust(
    file: Annotated[
        Path | None, typer.Argument(help="A trust file. Default: the one of this machine's suite.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Check a trust file, and print what each of its keys may sign. Exit status 1 if a server would
    refuse the file.

    The file is a JSON list of {"issuer", "roles", "owners", "service", "jwk"}. `owners` limits a
    key to owners such as `user:ada`, `vendor:acme-*`, `user:*` or `*`; without it, a key signs the
    owners whose kind is one of its roles.
    """
    keys = trusted_keys(file or State(state).trust_file)
    table = Table(show_header=True)
    for column in ("issuer", "key", "roles", "owners", "service"):
        table.add_column(column, overflow="fold")
    for key in keys:
        owners = "by its roles" if key.owners is None else ", ".join(key.owners)
        row = (key.issuer, key.key.kid, ", ".join(sorted(key.roles)), owners, key.service or "")
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)


@app.command()
def migrate(
    database_url: Annotated[
        str, typer.Option(help="A URL that may create roles and schemas.", envvar="DATABASE_URL")
    ],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Bring every service's schema up to date in a Postgres of your own. Safe to repeat.

    Makes keys and passwords in the state directory, and login URLs for ATELIER_SECRETS_DIR in its
    secrets/. `atelier up` does all this by itself.
    """
    from shared.database.migrate import MigrationFailed

    try:
        migrate_all(State(state), database_url, lambda text: console.print(f"[dim]{text}"))
    except MigrationFailed as problem:
        raise stop_with(problem) from None


@app.command()
def setup(
    database_url: Annotated[
        str, typer.Option(help="A URL that may create roles and schemas.", envvar="DATABASE_URL")
    ],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Do once what a deployment on servers of your own needs: `migrate`, and make the bucket of
    ATELIER_S3_*.

    Safe to repeat.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from shared.settings import load

    migrate(database_url, state)
    settings = load("assets")
    if settings.storage == "s3":
        try:
            make_bucket(settings)
        except (BotoCoreError, ClientError) as error:
            raise stop_with(
                f"bucket {settings.s3_bucket} at {settings.s3_endpoint}: {error}"
            ) from None
    console.print("Ready: start the services.")


@app.command()
def doctor(state: StateOption = DEFAULT_STATE) -> None:
    """Check this machine and the running suite, and say what to do about each fault. Exit status 1
    if there is one."""
    table = Table(show_header=True)
    for column in ("check", "result", "what to do"):
        table.add_column(column, overflow="fold")
    faults = 0
    for check in checks.run(State(state)):
        faults += not check.passed
        table.add_row(
            check.name,
            f"[green]{escape(check.found)}" if check.passed else f"[red]{escape(check.found)}",
            check.advice,
        )
    console.print(table)
    if faults:
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Print every setting with its default and meaning.

    A setting is an environment variable. To set it for one service alone, put the service's name
    in: `ATELIER_PIPELINE_POOL_SIZE`.
    """
    out = Console(highlight=False)
    for name, field in Settings.model_fields.items():
        default = (
            field.default.get_secret_value()
            if hasattr(field.default, "get_secret_value")
            else field.default
        )
        shown = escape(str(default if default not in (None, "") else "-"))
        out.print(f"[bold]ATELIER_{name.upper()}[/bold]  [green]{shown}[/green]", soft_wrap=True)
        out.print(Padding(escape(field.description or ""), (0, 0, 0, 4)))


styles = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The style catalogue, which everyone reads and operators write.",
)
app.add_typer(styles, name="styles")


@styles.callback()
def _styles() -> None:
    """Makes `seed` a command of its own, although it is the only one."""


@styles.command()
def seed(
    manifest: Annotated[
        Path, typer.Argument(help="YAML or JSON; pictures are named relative to it.")
    ],
    address: Annotated[
        str, typer.Option(help="Where `assets` answers. Default: on this machine.")
    ] = "",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Bring the catalogue in line with a manifest. Safe to repeat, also after an interruption.

    Uploads the pictures that are missing, by SHA-256, and makes a new version of each style that
    differs. Styles that the manifest doesn't name stay as they are. Acts as admin:atelier, or with
    the admin token in ATELIER_TOKEN.
    """
    from cli.styles import SeedFailed, Unusable, admin_token
    from cli.styles import seed as seed_styles

    given = os.environ.get("ATELIER_TOKEN") or admin_token(State(state))
    try:
        seed_styles(manifest, address or f"127.0.0.1:{ports()['assets']}", given, print)
    except Unusable as problem:
        raise stop_with(problem, 2) from None
    except SeedFailed as problem:
        raise stop_with(problem) from None


@app.command()
def demo(
    photos: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Front, back and side of one product. Default: the project's own jacket."
        ),
    ] = None,
    facts: Annotated[
        Path | None, typer.Option(help="What is known about the product, as YAML.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("demo-out"),
    provider: Annotated[
        str,
        typer.Option(
            help="Who runs the models, such as gemini; its key is read from the environment, such"
            " as ATELIER_GEMINI_API_KEY. Default: local, which needs none."
        ),
    ] = "",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make a tech pack from photographs, through the running services, as an outside client.

    Uses the suite that `atelier up` runs on this state directory, or starts one for the demo.
    """
    client = [
        sys.executable,
        "-P",
        str(ROOT / "examples" / "client" / "demo.py"),
        "--out",
        str(out.resolve()),
    ]
    if facts:
        client += ["--facts", str(facts.resolve())]
    client += [str(photo.resolve()) for photo in photos or []]
    checked = subprocess.run([*client, "--check"], env=_client_environment(""))
    if checked.returncode:
        raise typer.Exit(checked.returncode)
    from cli.demo import run_client

    if provider:
        os.environ["ATELIER_PROVIDERS"] = json.dumps({"*": [provider]})
    raise typer.Exit(
        run_client(client, State(state), console, report, _client_environment, own=bool(provider))
    )


def _client_environment(client_token: str) -> dict[str, str]:
    """Returns the environment without ATELIER_* variables, plus the stubs and the token."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")
    }
    return {**environment, "PYTHONPATH": str(ROOT / "gen"), "ATELIER_TOKEN": client_token}


if __name__ == "__main__":
    logs.keep_stderr()
    app(prog_name="atelier")
