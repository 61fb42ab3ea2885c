import socket

import pytest

from shared.telemetry import serve_metrics


def test_a_port_that_is_taken_is_told_with_the_setting_that_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"METRICS_PORT {port} can't be used.*ATELIER_<SERVICE>_METRICS_PORT"
        ):
            serve_metrics("127.0.0.1", port, 1)
