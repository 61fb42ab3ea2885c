"""What tests/test_tenancy.py needs of each service: a module of its name with

async def prepare(atelier: Suite, owner: Client, canary: str) -> Any
                          makes rows of the owner; their texts hold the canary
CASES: dict[str, Case]    one per rpc, by the method's full name
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message


@dataclass(frozen=True)
class Case:
    """`make(owned)` is the request (for a client stream: the messages) that is served to the owner
    of the rows.

    `others`: what another owner is answered, if its role may call at all: a status code, or a check
    of the answers that is true if they show nothing. The canary may never show, which is tested
    besides. `owner`: what the owner is answered; a state that forbids the call shows as well as OK
    that the owner's row was found.
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
    """A page with nothing in `field`, and no page after it."""
    return lambda answers: not getattr(answers[0], field) and not answers[0].next_page_token


def only_ready(answers: Sequence[Any]) -> bool:
    """A watch whose current state is nothing at all."""
    return len(answers) == 1


def nothing(_answers: Sequence[Any]) -> bool:
    """The answer may be anything that doesn't show the canary: a row that the caller made itself,
    for example."""
    return True
