"""Prints a proto2 file from its descriptor, for a file whose text no package carries.

The printed text compiles to the same descriptor; comments are lost, since packaged descriptors have
none. This module prints what buf/validate/validate.proto has (messages, fields, oneofs, enums,
extensions, reserved numbers and every option). It raises NotImplementedError for nested
definitions, maps, groups, defaults and other syntaxes.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_DESCRIPTOR = "google/protobuf/descriptor.proto"
_HIGHEST_NUMBER = 536_870_912  # the end, exclusive, that a descriptor has for `to max`


def printed(
    file: descriptor_pb2.FileDescriptorProto, described: descriptor_pb2.FileDescriptorSet
) -> str:
    """Returns the text of `file`. `described` holds it and all its imports, because only the
    definitions of extensions tell how options are written."""
    if file.syntax not in ("", "proto2"):
        raise NotImplementedError(f"{file.name} is {file.syntax}")
    pool = descriptor_pool.DescriptorPool()
    for each in described.file:
        pool.Add(each)
    # Parsed again with this pool, whose classes know the extensions that its files define.
    known = message_factory.GetMessageClassesForFiles([file.name, _DESCRIPTOR], pool)
    again = known["google.protobuf.FileDescriptorProto"].FromString(file.SerializeToString())
    return "\n".join(_lines(again)) + "\n"


def _lines(file: Any) -> Iterator[str]:
    yield from ('syntax = "proto2";', "", f"package {file.package};", "")
    yield from (f'import "{name}";' for name in file.dependency)
    yield ""
    yield from (f"option {option};" for option in _options(file.options))
    for extension in file.extension:
        yield from ("", f"extend {extension.extendee} {{", *_indented(_field(extension)), "}")
    for enum in file.enum_type:
        yield from ("", *_enum(enum))
    for message in file.message_type:
        yield from ("", *_message(message))


def _message(message: Any) -> Iterator[str]:
    if message.nested_type or message.enum_type or message.extension:
        raise NotImplementedError(f"{message.name} holds definitions or a map")
    yield f"message {message.name} {{"
    yield from _indented(f"option {option};" for option in _options(message.options))
    for index, fields in groupby(message.field, _oneof_of):
        if index is None:
            yield from _indented(line for field in fields for line in _field(field))
        else:
            yield from _indented(_oneof(message.oneof_decl[index], fields))
    for span in message.extension_range:
        yield f"  extensions {_span(span.start, span.end)};"
    spans = [_span(each.start, each.end) for each in message.reserved_range]
    yield from _indented(_reserved(spans, message.reserved_name))
    yield "}"


def _oneof_of(field: Any) -> int | None:
    return field.oneof_index if field.HasField("oneof_index") else None


def _oneof(oneof: Any, fields: Iterable[Any]) -> Iterator[str]:
    yield f"oneof {oneof.name} {{"
    yield from _indented(f"option {option};" for option in _options(oneof.options))
    yield from _indented(line for field in fields for line in _field(field))
    yield "}"


def _field(field: Any) -> Iterator[str]:
    if field.type == _Field.TYPE_GROUP or field.HasField("default_value"):
        raise NotImplementedError(f"{field.name} is a group or has a default")
    kind = field.type_name or _Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = _Field.Label.Name(field.label).removeprefix("LABEL_").lower()
    labelled = kind if _oneof_of(field) is not None else f"{label} {kind}"
    options = ",\n".join(_options(field.options))
    yield f"{labelled} {field.name} = {field.number}" + (" [" if options else ";")
    if options:
        yield from (*_indented([options]), "];")


def _enum(enum: Any) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    yield from _indented(f"option {option};" for option in _options(enum.options))
    for value in enum.value:
        options = ", ".join(_options(value.options))
        yield f"  {value.name} = {value.number}" + (f" [{options}];" if options else ";")
    spans = [_span(each.start, each.end + 1) for each in enum.reserved_range]
    yield from _indented(_reserved(spans, enum.reserved_name))
    yield "}"


def _reserved(spans: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    if spans:
        yield f"reserved {', '.join(spans)};"
    if names:
        yield "reserved " + ", ".join(f'"{name}"' for name in names) + ";"


def _options(options: Message) -> Iterator[str]:
    """Yields each option as `name = value`, the form between brackets and after `option`."""
    for field, value in options.ListFields():
        name = f"({field.full_name})" if field.is_extension else field.name
        for each in value if field.is_repeated else [value]:
            out = io.StringIO()
            text_format.PrintFieldValue(field, each, out)
            yield f"{name} = {out.getvalue()}"


def _span(start: int, end: int) -> str:
    if end >= _HIGHEST_NUMBER:
        return f"{start} to max"
    return str(start) if end == start + 1 else f"{start} to {end - 1}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from (f"  {part}" for part in line.split("\n"))
