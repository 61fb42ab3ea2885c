"""The metrics port shows what is stored; rules and dashboard name only existing metrics."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from services.assets.accounting import rules as storage_rules
from services.conversions import ledger, metrics  # noqa: F401 - they register metrics of workers
from services.pipeline import log_pruning, researching, review_metrics  # noqa: F401 - so do these
from services.techfiles.legacy import writing  # noqa: F401 - so does this
from services.techfiles.verifying import finding_metrics  # noqa: F401 - so does this
from shared.erasing import metrics as of_erasures  # noqa: F401 - so does this
from shared.telemetry import METRICS
from tests.assets import flows, storage
from tests.suite import ROOT, Suite, browser, free_ports

OPS = ROOT / "ops"
DATA = flows.jpeg(64, 48)
# How metrics begin that workers export, and not the servers that these tests read.
OF_WORKERS = (
    "atelier_job",
    "atelier_credit",
    "atelier_provider",
    "atelier_queue",
    "atelier_dead",
    "atelier_outside",
    "atelier_batches",
    "atelier_erasure",
    "atelier_history",
    "atelier_legacy",
    "atelier_market",
    "atelier_product_logs",
    "atelier_retention",
    "atelier_review",
    "atelier_revocation",
    "atelier_upkeep",
)
SUFFIXES = {"counter": "_total", "histogram": "_bucket"}


@asynccontextmanager
async def serving(suite: Suite, log: str = os.devnull) -> AsyncIterator[str]:
    """Runs a server in a process of its own; yields the address of its metrics."""
    port, metrics_port = free_ports(2)
    settings = suite.settings("assets", "app")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "ATELIER_ASSETS_PORT": str(port),
        "ATELIER_METRICS_PORT": str(metrics_port),
        "ATELIER_DATABASE_URL": settings.database_url.get_secret_value(),
        "ATELIER_TRUST_FILE": str(settings.trust_file),
        "ATELIER_STORAGE_ROOT": str(settings.storage_root),
        "ATELIER_STORAGE_SECRET_FILE": str(settings.storage_secret_file),
        "ATELIER_STORAGE_URL": settings.storage_url,
    }
    with open(log, "wb") as err:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.assets", "serve", env=environment, cwd=ROOT, stderr=err
        )
    try:
        async with asyncio.timeout(30):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await channel.channel_ready()
        suite.addresses["assets"] = f"127.0.0.1:{port}"
        yield f"http://127.0.0.1:{metrics_port}/metrics"
    finally:
        process.terminate()
        await process.wait()


async def scraped(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Returns samples by name, parsed as Prometheus does."""
    async with browser() as http:
        text = (await http.get(url)).text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\batelier_\w+", text))


@pytest.mark.long
async def test_a_running_server_exports_every_metric_that_rules_and_dashboard_name(
    own_suite: Suite,
) -> None:
    await own_suite.work("assets")
    async with serving(own_suite) as url:
        ada, admin = own_suite.client("ada"), own_suite.client("root", "admin")
        await storage.set_quota(
            admin, stored_bytes=10**9, assets=1000, monthly_bandwidth_bytes=10**9
        )
        asset = await flows.upload(ada, DATA)
        variants = await flows.variants_of(ada, asset.id)
        await flows.announce(ada, DATA)
        found = await scraped(url)

    dashboard = json.loads((OPS / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    groups = yaml.safe_load((OPS / "prometheus-rules.yml").read_text())["groups"]
    expressions += [rule["expr"] for group in groups for rule in group["rules"]]
    named = named_in(" ".join(expressions))
    assert len(named) > 12
    of_workers = {
        metric.name + SUFFIXES.get(metric.type, "")
        for metric in METRICS.collect()
        if metric.name.startswith(OF_WORKERS)
    }
    assert len(of_workers) > 3
    assert named - set(found) - of_workers == set()
    for expression in expressions:  # the queried labels exist, too
        for name, label, value in re.findall(r'(atelier_\w+)\{(\w+)="(\w+)"\}', expression):
            assert name in of_workers or any(
                labels.get(label) == value for labels, _ in found[name]
            ), expression

    assert {
        labels["alert"]: value for labels, value in found["atelier_storage_alert_threshold"]
    } == (storage_rules.ALERT_THRESHOLDS)
    stored = 2 * len(DATA) + sum(v.size_bytes for v in variants.values())
    assert found["atelier_storage_stored_bytes"] == [({}, stored)]
    assert found["atelier_storage_pending_uploads"] == [({}, 1)]
    product = {"kind": "product", "mime_type": "image/jpeg"}
    assert ({**product, "status": "ready"}, 1) in found["atelier_storage_assets"]
    assert ({"quota": "stored_bytes"}, stored / 10**9) in found["atelier_storage_quota_used_ratio"]


@pytest.mark.long
async def test_lines_that_cannot_be_written_are_counted_and_fail_no_call(own_suite: Suite) -> None:
    async with serving(own_suite, log="/dev/full") as url:
        ada = own_suite.client("ada")
        asset = await flows.upload(ada, DATA)
        assert await flows.get(ada, asset.id)
        [(_, lost)] = (await scraped(url))["atelier_log_lines_lost_total"]
    assert lost >= 3  # the line that says it serves, and two calls


@pytest.mark.long
async def test_scraping_often_reads_the_database_seldom(own_suite: Suite) -> None:
    async with serving(own_suite) as url:
        await flows.announce(own_suite.client("ada"), DATA)
        first = await scraped(url)
        await flows.announce(own_suite.client("ada"), DATA)
        again = await scraped(url)
        assert (await storage.report(own_suite.client("ada"))).pending_uploads == 2

    for name in ("atelier_storage_pending_uploads", "atelier_storage_read_timestamp_seconds"):
        assert again[name] == first[name], "what was read is kept for a while"
    assert first["atelier_storage_pending_uploads"] == [({}, 1)]


def test_every_threshold_has_a_rule_and_no_rule_has_a_threshold_of_its_own() -> None:
    rules = yaml.safe_load((OPS / "prometheus-rules.yml").read_text())["groups"][0]["rules"]
    compared = re.findall(
        r'atelier_storage_alert_threshold\{alert="(\w+)"\}', " ".join(r["expr"] for r in rules)
    )
    assert sorted(compared) == sorted(storage_rules.ALERT_THRESHOLDS)
