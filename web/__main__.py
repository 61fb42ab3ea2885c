"""Runs the web process: `python -m web`. It is a client of the four services and keeps nothing."""

import signal
import socket
import sys

import structlog

from shared import telemetry
from shared.settings import WEB_PORT, load
from web.app import Server, Web

_log = structlog.get_logger("web")


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exits with status 1 and one line if it can't start."""
    settings = load("web")
    telemetry.set_up("web", settings.log_level)
    port = settings.port or WEB_PORT
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, port))
        listener.listen(2048)
    except OSError as error:
        sys.exit(
            f"atelier: {settings.host}:{port} can't be used ({error.strerror}); stop what listens"
            " there, or set ATELIER_WEB_PORT"
        )
    # The server raises the signal again when it has finished; this turns it into a normal exit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    _log.info("serving", url=f"http://{settings.host}:{listener.getsockname()[1]}")
    Server(Web(settings)).run(sockets=[listener])


if __name__ == "__main__":
    main()
