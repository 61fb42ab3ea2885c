"""Checks a refusal and what it says."""

from collections.abc import Awaitable
from typing import Any

import grpc

from tests import calls


async def refused(call: Awaitable[Any], code: grpc.StatusCode, text: str = "") -> calls.Refusal:
    """Awaits a call that must be refused with this code and a message that holds `text`."""
    refusal = await calls.refusal(call)
    assert refusal.code is code, refusal.text
    assert text in refusal.text
    return refusal
