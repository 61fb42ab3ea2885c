"""Every field of a request says what it takes, so that no caller finds it out from a refusal."""

from collections.abc import Iterator
from typing import Any

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.contract.test_options import METHODS

NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT,
}
ENDS = {"max_len", "max_bytes", "len", "uuid", "in", "pattern"}
# Fields without a limit of their own, with what limits them.
LIMITED = {
    "atelier.assets.v1.MetadataCondition.path": "32 names of any length, which are compared only",
    "atelier.conversions.v1.CompleteJobRequest.seed": "nothing: each 64-bit number is a seed",
}


def fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Yields the fields of a message and of the messages in it. A map's limits stand on the map."""
    if not message.full_name.startswith("atelier.") or message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.message_type:
            yield from fields(field.message_type, seen)
        if not message.GetOptions().map_entry:
            yield field


def is_limited(field: FieldDescriptor) -> bool:
    constraint: Any = validate_pb2.field
    rule: Any = field.GetOptions().Extensions[constraint]
    if rule.WhichOneof("type") == "repeated":
        rule = rule.repeated.items
    kind = rule.WhichOneof("type")
    if field.cpp_type in NUMBERS:
        return kind is not None
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return bool(kind and ENDS & {each.name for each, _ in getattr(rule, kind).ListFields()})
    return True


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_text_and_number_of_a_request_has_its_limit(name: str) -> None:
    open_ended = {
        field.full_name
        for field in fields(METHODS[name].input_type, set())
        if not is_limited(field)
    }
    assert open_ended <= set(LIMITED), (
        f"{sorted(open_ended - set(LIMITED))}: give each a rule (buf.validate.field), such as"
        " string.max_len, or name it in LIMITED with what limits it"
    )
