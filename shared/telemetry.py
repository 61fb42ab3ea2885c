"""Logs as JSON lines on standard error, and Prometheus metrics; set up once per process."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    start_http_server,
    values,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared import logs

# Metrics stay in memory, whatever PROMETHEUS_MULTIPROC_DIR says. Each process serves its own, and
# SIGBUS kills a process that counts in a mapped file when the disk is full. Every metric of ours
# must be created after this line.
values.ValueClass = values.MutexValue

# A separate registry: the default one has collectors (garbage collector, process) that aren't
# needed here.
METRICS = CollectorRegistry()
CALLS = Counter("atelier_calls", "Finished gRPC calls", ["method", "code"], registry=METRICS)
SECONDS = Histogram(
    "atelier_call_seconds",
    "Duration of unary gRPC calls",
    ["method"],
    registry=METRICS,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge(
    "atelier_calls_in_flight", "Unary calls being served, without those that wait", registry=METRICS
)
STREAMS = Gauge(
    "atelier_streams_open", "Streaming calls being served, and those that wait", registry=METRICS
)


class _LostLines(Collector):
    """The number of lost log lines. The streams count them, since a stream must not wait for the
    lock of a metric."""

    def __init__(self, streams: Sequence[logs.LogStream]) -> None:
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        lost = sum(stream.lost for stream in self._streams)
        yield CounterMetricFamily(
            "atelier_log_lines_lost", "Log lines that could not be written", value=lost
        )


class _Lines:
    """The logger that structlog writes to. Each text is a whole line."""

    def __init__(self, stream: logs.LogStream) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = stream.write


def set_up(service: str, level: str) -> None:
    """Routes structlog and the standard library's loggers (libraries) to one JSON line per event.
    Call it once per process."""
    streams = logs.set_up(service)
    METRICS.register(_LostLines(streams))

    def to_line(_logger: Any, method: str, event: Any) -> str:
        return logs.line(service, method, event)

    structlog.configure(
        processors=[to_line],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_names: _Lines(streams[1]),
        cache_logger_on_first_use=True,
    )


def serve_metrics(host: str, port: int, processes: int) -> None:
    """Serves this process's metrics on `port` or the next free port; 0 disables them. Each process
    of a server has its own port, from `port` to `port + processes - 1`. Raises OSError if all are
    taken."""
    for candidate in range(port, port + processes) if port else ():
        try:
            start_http_server(candidate, addr=host, registry=METRICS)
            return
        except OSError as error:
            if candidate == port + processes - 1:
                text = (
                    f"METRICS_PORT {port} can't be used ({error.strerror}); services of one machine"
                    " need one each"
                )
                raise OSError(error.errno, f"{text}: ATELIER_<SERVICE>_METRICS_PORT") from None
