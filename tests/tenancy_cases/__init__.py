"""tests/test_tenancy.py needs a module of each service, named like it, with

async def prepare(suite: Suite, owner: Client, canary: str) -> Any
                          makes rows of the owner; their texts hold the canary
CASES: dict[str, Case]    has one case per rpc, by the method's full name
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message


@dataclass(frozen=True)
class Case:
    """One rpc, as the owner of the rows and as others call it.

    `make(owned)` returns the request (for a client stream, the messages) that the owner is served.
    `others` is what another owner is answered, if its role may call at all: a status code, or a
    check of the answers, which is true if they show nothing. (The canary may never show; this is
    tested besides.) `owner` is what the owner is answered. A state that forbids the call shows as
    well as OK that the owner's row was found.
    """

    make: Callable[[Any], Message | Sequence[Message]]
    others: grpc.StatusCode | Callable[[Sequence[Any]], bool]
    owner: grpc.StatusCode = grpc.StatusCode.OK
    owner_role: str = "user"

    def requests(self, owned: Any) -> list[Message]:
        made = self.make(owned)
        return [made] if isinstance(made, Message) else list(made)


NOT_FOUND = grpc.StatusCode.NOT_FOUND
FORBIDDEN_BY_STATE = grpc.StatusCode.FAILED_PRECONDITION


def empty(field: str) -> Callable[[Sequence[Any]], bool]:
    """Checks that a page has nothing in `field`, and no page after it."""
    return lambda answers: not getattr(answers[0], field) and not answers[0].next_page_token


def only_ready(answers: Sequence[Any]) -> bool:
    """Checks that the current state of a watch is nothing at all."""
    return len(answers) == 1


def nothing(_answers: Sequence[Any]) -> bool:
    """Checks nothing: the answer may be anything that doesn't show the canary, such as a row that
    the caller made itself."""
    return True
