"""Texts that a command prints when a call failed."""

from typing import Any

import grpc

_AGAIN = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def refusal(error: Any, address: str) -> str:
    """Describes a failed call for a person, with the next step."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return (
            f"nothing answers at {address} ({error.details()}); run ./atelier up or name --address,"
            " then try again"
        )
    again = "; try again" if error.code() in _AGAIN else ""
    return f"{error.details()} ({error.code().name}){again}"
