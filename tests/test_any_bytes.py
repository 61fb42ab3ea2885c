"""Any bytes get a declared answer, never UNKNOWN or INTERNAL. Every unary rpc of every service is
called."""

import asyncio
import math
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from tests import calls
from tests.suite import Cluster, DiskServer, Keys, Suite, built_services, running_suite
from tests.tenancy_cases import webhooks
from tests.test_tenancy import cases, owned, rows_for  # noqa: F401 (a fixture)

TOTAL = 3000  # calls in `make test`, shared among the rpcs
SEED = 20261120
UNDECLARED = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED}
UNARY = {
    name: method
    for name, method in calls.served_by(built_services()).items()
    if not method.client_streaming and not method.server_streaming
}
_TEXTS = (
    "",
    "a",
    "%_\\",
    "'; DROP TABLE assets; --",
    "$1",
    "{}",
    "\x00",
    "a\x00b",
    "\u202egpj.exe",
    "\ud7ff\ue000\uffff",
    "\U0001f9e5" * 64,
    "x" * 10_000,
    "../../etc/passwd",
    "..",
    "/",
    "é",
    "e\u0301",
    "00000000-0000-0000-0000-000000000000",
    "{0190f3c0-0000-7000-8000-000000000000}",
    "urn:uuid:0190f3c0-0000-7000-8000-000000000000",
    "AAAA",
    "W10=",
    "e30=",
    "WyJ4IiwgIjIwMjAtMDEtMDEiLCA1XQ==",
    "WzEsMixudWxsXQ==",
    "1.2.3",
    "-1",
    "NaN",
)
_INTEGERS = (0, 1, -1, 2, 50, 1000, 1001, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**53)
_DOUBLES = (0.0, -0.0, 1.0, 0.8, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides |= webhooks.SETTINGS | {"max_deadline_seconds": 2.0}
        await suite.serve(*built_services())
        yield suite


def number_of(field: Any, chance: random.Random) -> Any:
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[field.cpp_type]
    return min(max(chance.choice(_INTEGERS), low), high)


def value_of(field: Any, chance: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 100)))
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.choice((*_TEXTS, str(uuid.UUID(int=chance.getrandbits(128)))))
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((*field.enum_type.values_by_number, 99, -1))
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return chance.choice(_DOUBLES)
        case FieldDescriptor.CPPTYPE_MESSAGE:
            raise AssertionError("filled in place")
        case _:
            return number_of(field, chance)


def fill(message: Message, chance: random.Random, share: float, depth: int = 0) -> None:
    """Sets about `share` of the fields to values that a client could send, but an honest one would
    not."""
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        if chance.random() > share or field.name == "wait":  # no worker runs, so a wait would last
            continue
        inner = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        if inner and depth > 4:
            continue
        if inner and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            key = chance.choice(_TEXTS)
            if entry.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                fill(getattr(message, field.name)[key], chance, 0.6, depth + 1)
            else:
                getattr(message, field.name)[key] = value_of(entry, chance)
        elif field.is_repeated:
            for _ in range(chance.choice((0, 1, 2, 101))):
                if inner:
                    fill(getattr(message, field.name).add(), chance, 0.5, depth + 1)
                else:
                    getattr(message, field.name).append(value_of(field, chance))
        elif inner:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), chance, 0.7, depth + 1)
        else:
            setattr(message, field.name, value_of(field, chance))


def garbage(_method: MethodDescriptor, _valid: Message, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((1, 2, 10, 1000)))


def wild(method: MethodDescriptor, _valid: Message, chance: random.Random) -> bytes:
    message = calls.request_class(method)()
    fill(message, chance, chance.choice((0.3, 0.9)))
    return message.SerializeToString()


def half_wild(_method: MethodDescriptor, valid: Message, chance: random.Random) -> bytes:
    """Returns a request about existing rows with one or two wild fields: it gets further than
    others."""
    message = type(valid).FromString(valid.SerializeToString())
    fill(message, chance, 1.5 / max(1, len(message.DESCRIPTOR.fields)))
    return message.SerializeToString()


def mutated(_method: MethodDescriptor, valid: Message, chance: random.Random) -> bytes:
    data = bytearray(valid.SerializeToString())
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[place : place + 1] = chance.randbytes(1)
            case 1:
                data[place:place] = chance.randbytes(chance.choice((1, 4)))
            case 2:
                del data[place : place + chance.choice((1, 8))]
            case _:
                data[place:place] = data[: chance.randrange(len(data) + 1)]
    return bytes(data)


MAKERS: tuple[Callable[[MethodDescriptor, Message, random.Random], bytes], ...] = (
    garbage,
    wild,
    half_wild,
    mutated,
)


@pytest.mark.parametrize("name", sorted(UNARY.keys() & cases().keys()))
async def test_random_requests_get_a_declared_answer(suite: Suite, owned: Any, name: str) -> None:  # noqa: F811
    method = UNARY[name]
    [valid] = cases()[name].requests(rows_for(name, owned))
    client = suite.client("ada", cases()[name].owner_role)
    chance = random.Random(f"{SEED} {name}")
    several = asyncio.Semaphore(4)

    async def ask(make: Callable[[MethodDescriptor, Message, random.Random], bytes]) -> None:
        data = make(method, valid, chance)
        async with several:
            code = await calls.send_bytes(client, method, data, calls.service_of(name))
        assert code not in UNDECLARED, f"{code.name} for {data!r}"

    share = max(8, TOTAL // len(UNARY) // len(MAKERS))
    await asyncio.gather(*(ask(make) for make in MAKERS for _ in range(share)))


# The server enforces the limit, so one method of each gRPC service suffices: sending 4 MiB takes
# time.
@pytest.mark.parametrize(
    "name", sorted({name.rpartition(".")[0]: name for name in sorted(UNARY)}.values())
)
async def test_more_than_4_mib_is_refused_before_it_is_read(suite: Suite, name: str) -> None:
    client = suite.client("ada")
    code = await calls.send_bytes(
        client, UNARY[name], bytes(4 * 1024 * 1024 + 1), calls.service_of(name)
    )
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", sorted(UNARY))
async def test_an_empty_request_gets_a_declared_answer(suite: Suite, name: str) -> None:
    code = await calls.send_bytes(suite.client("ada"), UNARY[name], b"", calls.service_of(name))
    assert code not in UNDECLARED


async def test_any_authorization_gets_a_declared_answer(suite: Suite) -> None:
    chance, good = random.Random(SEED), suite.keys.token("ada")
    pieces = (
        "Bearer",
        "bearer",
        "BEARER",
        " ",
        "  ",
        ".",
        "=",
        "~",
        good,
        good[:50],
        good.swapcase(),
        "e30",
        "Basic",
    )
    call: Any = (
        suite.client(None).channel("assets").unary_unary("/atelier.assets.v1.AssetService/GetAsset")
    )

    for _ in range(200):
        header = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 6)))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call(b"\xff", metadata=(("authorization", header),))
        code = ended.value.code()
        assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT), (
            code,
            header,
        )


async def test_a_method_that_does_not_exist_is_unimplemented(suite: Suite) -> None:
    call: Any = (
        suite.client("ada")
        .channel("assets")
        .unary_unary("/atelier.assets.v1.AssetService/DropAssets")
    )
    await calls.refused(call(b""), grpc.StatusCode.UNIMPLEMENTED)
