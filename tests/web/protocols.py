"""Speaks Connect and gRPC-Web by hand, so that tests see what is on the wire."""

import base64
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

PROTOCOLS = ("connect+json", "connect+proto", "grpc-web", "grpc-web+json")


@dataclass
class Answer:
    """An answer: `code` is a name such as `not_found`, `ok` if the call was served."""

    code: str
    text: str = ""
    reason: str = ""
    fields: list[str] = field(default_factory=list)
    message: Message | None = None


def frame(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


def frames(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        found.append((flags, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def call(
    http: httpx.AsyncClient,
    url: str,
    request: Message,
    response: type[Message],
    protocol: str,
    headers: dict[str, str],
) -> Answer:
    """Makes a unary call."""
    if protocol.startswith("connect"):
        return await _connect(http, url, request, response, protocol, headers)
    return await _grpc_web(http, url, request, response, protocol, headers)


async def _connect(
    http: httpx.AsyncClient,
    url: str,
    request: Message,
    response: type[Message],
    protocol: str,
    headers: dict[str, str],
) -> Answer:
    is_json = protocol.endswith("json")
    body = json_format.MessageToJson(request).encode() if is_json else request.SerializeToString()
    kind = "application/json" if is_json else "application/proto"
    answer = await http.post(url, content=body, headers={**headers, "content-type": kind})
    if answer.status_code != 200:
        said = answer.json()
        details = status_pb2.Status()
        for each in said.get("details", ()):
            padded = each["value"] + "=" * (-len(each["value"]) % 4)
            details.details.add(
                type_url=f"type.googleapis.com/{each['type']}", value=base64.b64decode(padded)
            )
        return _refusal(said["code"], said.get("message", ""), details)
    made = response()
    if is_json:
        json_format.Parse(answer.content, made)
    else:
        made.ParseFromString(answer.content)
    return Answer("ok", message=made)


async def _grpc_web(
    http: httpx.AsyncClient,
    url: str,
    request: Message,
    response: type[Message],
    protocol: str,
    headers: dict[str, str],
) -> Answer:
    is_json = protocol.endswith("json")
    body = json_format.MessageToJson(request).encode() if is_json else request.SerializeToString()
    kind = f"application/grpc-web+{'json' if is_json else 'proto'}"
    answer = await http.post(url, content=frame(body), headers={**headers, "content-type": kind})
    data, trailers = b"", {}
    for flags, part in frames(answer.content):
        if flags & 0x80:
            lines = part.decode().split("\r\n")
            trailers = dict(line.split(":", 1) for line in lines if line)
        else:
            data += part
    trailers = {name.lower(): value.strip() for name, value in trailers.items()} or {
        name: value for name, value in answer.headers.items() if name.startswith("grpc-")
    }
    if trailers["grpc-status"] != "0":
        details = status_pb2.Status()
        if said := trailers.get("grpc-status-details-bin"):
            details.ParseFromString(base64.b64decode(said + "=" * (-len(said) % 4)))
        return _refusal(_NAMES[int(trailers["grpc-status"])], details.message, details)
    made = response()
    if is_json:
        json_format.Parse(data, made)
    else:
        made.ParseFromString(data)
    return Answer("ok", message=made)


def _refusal(code: str, text: str, status: status_pb2.Status) -> Answer:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    found = Answer(code, text)
    for detail in status.details:
        if detail.Unpack(info):
            found.reason = info.reason
        elif detail.Unpack(bad):
            found.fields = [each.field for each in bad.field_violations]
    return found


_NAMES = {
    1: "canceled",
    2: "unknown",
    3: "invalid_argument",
    4: "deadline_exceeded",
    5: "not_found",
    6: "already_exists",
    7: "permission_denied",
    8: "resource_exhausted",
    9: "failed_precondition",
    10: "aborted",
    11: "out_of_range",
    12: "unimplemented",
    13: "internal",
    14: "unavailable",
    16: "unauthenticated",
}


def end_of(body: bytes) -> Any:
    """Returns the last message of a Connect stream, which says how it ended."""
    [(_, said)] = [(flags, part) for flags, part in frames(body) if flags & 0b10]
    return json.loads(said)
