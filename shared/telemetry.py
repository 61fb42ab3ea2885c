"""Logs as JSON lines on standard error, and Prometheus metrics. Set up once per process."""

import functools
import json
import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

# A registry of our own: the default one runs collectors (garbage collector, process) that nobody here asked for.
METRICS = CollectorRegistry()
CALLS = Counter("atelier_calls", "Finished gRPC calls", ["method", "code"], registry=METRICS)
SECONDS = Histogram(
    "atelier_call_seconds", "Duration of unary gRPC calls", ["method"], registry=METRICS,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # fmt: skip
IN_FLIGHT = Gauge("atelier_calls_in_flight", "Unary calls being served, without those that wait", registry=METRICS)
STREAMS = Gauge("atelier_streams_open", "Streaming calls being served, and those that wait", registry=METRICS)

_SECRET_WORDS = ("password", "token", "secret", "authorization", "signature", "dsn")
_ENCODER = json.JSONEncoder(default=repr)  # json.dumps would make one for every line


@functools.cache  # names are those in our own source: a few dozen
def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def _hide_secrets(_logger: Any, _method: str, event: Any) -> Any:
    for name in event:
        if _is_secret(name):
            event[name] = "hidden"
    return event


def _to_json(_logger: Any, _method: str, event: Any) -> str:
    return _ENCODER.encode(event)


def set_up(service: str, level: str) -> None:
    """Routes both structlog and the standard library's loggers (libraries) to one JSON line per event."""

    def name_service(_logger: Any, _method: str, event: Any) -> Any:
        event.setdefault("service", service)
        return event

    shared_steps: list[Any] = [
        name_service,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    numeric = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared_steps, structlog.processors.format_exc_info, _to_json],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_steps,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _to_json,
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def serve_metrics(host: str, port: int, processes: int) -> None:
    """Serves this process's metrics on `port` (0: not at all), or on the next free one: every process of a server has
    its own, from `port` to `port + processes - 1`. Raises OSError if all are taken."""
    for candidate in range(port, port + processes) if port else ():
        try:
            start_http_server(candidate, addr=host, registry=METRICS)
            return
        except OSError as error:
            if candidate == port + processes - 1:
                text = f"METRICS_PORT {port} can't be used ({error.strerror}); services of one machine need one each"
                raise OSError(error.errno, f"{text}: ATELIER_<SERVICE>_METRICS_PORT") from None
