"""`atelier storage`: reports what is stored and what it costs, and copies it to another store."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from cli.refusals import refusal
from cli.state import DEFAULT_STATE, LOCAL_ISSUER, State
from cli.storage_copy import BadLocation, Copy, Outcome, open_location
from cli.suite import ports
from shared.rpc import auth
from shared.storage import StorageError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="What is stored and what it costs; moving it to another store.",
)
errors = Console(stderr=True, highlight=False)
INTERRUPTED = 130


def _stop_with(problem: object, status: int = 1) -> typer.Exit:
    errors.print(f"[bold red]atelier:[/bold red] {escape(str(problem))}", soft_wrap=True)
    return typer.Exit(status)


@app.command()
def copy(
    source: Annotated[str, typer.Option("--from", help="A store, see above.")],
    target: Annotated[str, typer.Option("--to", help="The same.")],
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Objects on their way at once.")
    ] = 8,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back from the target.")
    ] = False,
) -> None:
    """Copy every object to another store, while the suite runs.

    A store is `disk:/path` or `s3://bucket?endpoint=URL&region=NAME`; the keys of an S3 store are
    in `ATELIER_FROM_S3_ACCESS_KEY` and `ATELIER_FROM_S3_SECRET_KEY`, or `ATELIER_TO_S3_...`.

    Objects that the target already has are skipped, so running the command again continues an
    interrupted copy. Exit status 1 if an object could not be copied, 130 if it was interrupted.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, TimeRemainingColumn(), console=errors) as progress:
        try:
            opened = open_location(source, "FROM"), open_location(target, "TO")
            outcome = asyncio.run(Copy(*opened, progress, concurrency, verify).run())
        except BadLocation as problem:
            raise _stop_with(problem, 2) from None
        except (StorageError, OSError) as problem:
            raise _stop_with(problem) from None
    _tell(outcome)


def _tell(outcome: Outcome) -> None:
    for key, problem in sorted(outcome.failed.items()):
        errors.print(f"[red]not copied:[/red] {escape(key)}: {escape(problem)}", soft_wrap=True)
    gone = f", {outcome.gone} were deleted meanwhile" if outcome.gone else ""
    print(
        f"{outcome.copied} copied ({_size(outcome.copied_bytes)}), {outcome.present} were there"
        f" already{gone}, {len(outcome.failed)} failed"
    )
    if outcome.interrupted:
        errors.print("Interrupted. Run the same command again to go on.")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def report(
    owner: Annotated[
        str, typer.Option(help="Such as user:ada. Default: the whole deployment.")
    ] = "",
    months: Annotated[int, typer.Option(min=1, max=120, help="How far costs are projected.")] = 12,
    address: Annotated[
        str, typer.Option(help="Where assets answers. Default: on this machine.")
    ] = "",
    state: Annotated[
        Path, typer.Option("--state", envvar="ATELIER_STATE", help="Directory of the keys.")
    ] = (DEFAULT_STATE),
) -> None:
    """Print what is stored, quotas, alerts, the largest owners, and what it costs.

    Acts as an operator of this machine's suite, or with the token in ATELIER_TOKEN.
    """
    token = os.environ.get("ATELIER_TOKEN") or _operator_token(State(state))
    address = address or f"127.0.0.1:{ports()['assets']}"
    try:
        with grpc.insecure_channel(address) as channel:
            _print_report(_Calls(channel, token), owner, months)
    except grpc.RpcError as error:
        raise _stop_with(refusal(error, address)) from None


def _operator_token(files: State) -> str:
    files.prepare()
    key = auth.load_key(files.keys / "people.jwk")
    return auth.sign(key, issuer=LOCAL_ISSUER, subject="storage-report", role="admin", seconds=60)


class _Calls:
    """Calls the storage report service with a token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        from atelier.assets.v1 import storage_report_pb2_grpc

        self._stub = storage_report_pb2_grpc.StorageReportServiceStub(channel)
        self._metadata = [("authorization", f"Bearer {token}")]

    def ask(self, method: str, request: Any) -> Any:
        return getattr(self._stub, method)(request, metadata=self._metadata, timeout=30)


def _print_report(calls: _Calls, owner: str, months: int) -> None:
    from atelier.assets.v1 import storage_report_pb2 as pb

    out = Console(highlight=False)
    made = calls.ask("GetStorageReport", pb.GetStorageReportRequest(owner=owner)).report
    _print_overview(out, made)
    _print_counts(out, made)
    _print_alerts(out, calls.ask("ListAlerts", pb.ListAlertsRequest(owner=owner)).alerts)
    if made.owner:
        largest = calls.ask(
            "ListStorageSessions", pb.ListStorageSessionsRequest(owner=owner, page_size=10)
        ).sessions
        _print_largest(out, "session", [(row.session_id, row) for row in largest])
        return
    largest = calls.ask("ListStorageOwners", pb.ListStorageOwnersRequest(page_size=10)).owners
    _print_largest(out, "owner", [(row.owner, row) for row in largest])
    _print_costs(out, calls.ask("ProjectCosts", pb.ProjectCostsRequest(months=months)))


def _print_overview(out: Console, made: Any) -> None:
    table = Table(
        title=f"Storage of {made.owner or 'the deployment'}",
        title_justify="left",
        show_header=False,
    )
    month, days = made.bandwidth_this_month, made.bandwidth_last_30_days
    for name, value in (
        ("stored", _size(made.stored_bytes)),
        ("assets", f"{made.assets:,}"),
        ("pending uploads", f"{made.pending_uploads:,}"),
        ("uploads accepted, 30 days", _rate(made, "upload_success_rate", "none settled")),
        ("failed variants", f"{made.failed_variants:,}"),
        (
            "variants that fail, today and yesterday",
            _rate(made, "variant_failure_rate", "none ended"),
        ),
        (
            "sent this month",
            f"{_size(month.downloaded_bytes)} and about {_size(month.issued_bytes)} by URL",
        ),
        (
            "sent in 30 days",
            f"{_size(days.downloaded_bytes)} and about {_size(days.issued_bytes)} by URL",
        ),
    ):
        table.add_row(name, value)
    for use in made.quotas:
        if use.limit:
            table.add_row(*_quota(use))
    out.print(table)


def _rate(made: Any, field: str, without: str) -> str:
    return f"{getattr(made, field):.1%}" if made.HasField(field) else without


def _quota(use: Any) -> tuple[str, str]:
    """Returns name and use of a quota, in bytes or in numbers as the quota counts."""
    from atelier.assets.v1 import quota_pb2

    kind = quota_pb2.QuotaKind.Name(use.kind).removeprefix("QUOTA_KIND_")
    name = kind.lower().replace("_", " ")
    shown = _size if name.endswith("bytes") else "{:,}".format
    share = use.used / use.limit
    return f"quota: {name}", f"{shown(use.used)} of {shown(use.limit)} ({share:.0%})"


def _print_counts(out: Console, made: Any) -> None:
    from atelier.assets.v1 import asset_pb2
    from atelier.assets.v1 import storage_report_pb2 as pb

    table = Table("what", "type", "status", title="By kind, type and status", title_justify="left")
    for name in ("number", "bytes"):
        table.add_column(name, justify="right")
    for row in made.asset_counts:
        kind = asset_pb2.AssetKind.Name(row.kind).removeprefix("ASSET_KIND_").lower()
        status = pb.StorageStatus.Name(row.status).removeprefix("STORAGE_STATUS_").lower()
        table.add_row(kind, row.mime_type, status, f"{row.assets:,}", _size(row.bytes))
    for row in made.variant_counts:
        status = asset_pb2.VariantState.Name(row.state).removeprefix("VARIANT_STATE_").lower()
        table.add_row(f"variant {row.preset}", "", status, f"{row.variants:,}", _size(row.bytes))
    for row in made.average_sizes:
        table.add_row("mean size", row.mime_type, "", f"{row.assets:,}", _size(row.average_bytes))
    out.print(table)


def _print_alerts(out: Console, alerts: Any) -> None:
    firing = [alert for alert in alerts if alert.firing]
    for alert in firing:
        out.print(f"[bold red]alert:[/bold red] {escape(alert.message)}", soft_wrap=True)
    if not firing:
        out.print("[green]No alert fires.[/green]")


def _print_largest(out: Console, what: str, rows: list[tuple[str, Any]]) -> None:
    table = Table(what, title=f"The largest {what}s", title_justify="left")
    for name in ("assets", "stored", "sent"):
        table.add_column(name, justify="right")
    for name, row in rows:
        table.add_row(
            escape(name), f"{row.assets:,}", _size(row.stored_bytes), _size(row.sent_bytes)
        )
    out.print(table)


def _print_costs(out: Console, made: Any) -> None:
    now, later = made.points[0], made.points[-1]
    title = f"A month in {made.currency}, at prices of {made.price_date}"
    table = Table("store", title=title, title_justify="left")
    for point in (now, later):
        when = "now" if not point.months_ahead else f"in {point.months_ahead} months"
        table.add_column(
            f"{when}\n{_size(point.stored_bytes)}, {_size(point.bandwidth_bytes)} sent",
            justify="right",
        )
    for first, last in zip(now.costs, later.costs, strict=True):
        table.add_row(first.backend, f"{first.total:,.2f}", f"{last.total:,.2f}")
    out.print(table)
    measured = "1 day" if made.measured_days == 1 else f"{made.measured_days} days"
    out.print(f"Growth: {_size(made.growth_bytes_per_month)} a month, measured over {measured}.")
    out.print(escape(made.recommendation), soft_wrap=True)


def _size(count: float) -> str:
    """Formats bytes for a person, in steps of a thousand, as stores are billed."""
    sign, size = ("-" if count < 0 else ""), abs(float(count))
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            return f"{sign}{size:,.0f} {unit}" if unit == "bytes" else f"{sign}{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError
