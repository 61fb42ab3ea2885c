"""Reads a multipart/form-data upload as it arrives: small fields first, then one file, in bounded
memory."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_FIELDS: Final = 32
MAX_FIELD_BYTES: Final = 16 * 1024
MAX_FIELDS_BYTES: Final = 64 * 1024
"""Most bytes before the file: no signature has been verified yet."""

FILE_FIELD: Final = "file"


class BadForm(Exception):
    """The body isn't a form of the expected shape; the text says why."""


class UploadForm:
    """One form. Call `fields` first, then iterate `file`; both read only as much of the stream as
    they need."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadForm("the body is not multipart/form-data with a boundary")
        self._body = body
        self._read = 0
        self._fields: dict[str, str] = {}
        self._file: deque[bytes] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._name = b""
        self._value = b""
        self._field = ""
        self._file_begun = self._form_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise BadForm("the form's boundary is too long") from None

    async def fields(self) -> dict[str, str]:
        """Returns the fields that come before the file. Raises BadForm."""
        while not self._file_begun:
            if self._read > MAX_FIELDS_BYTES:
                raise BadForm(f"the form has more than {MAX_FIELDS_BYTES} bytes before its file")
            if not await self._feed():
                raise BadForm(f"the form has no part named {FILE_FIELD!r}")
        return dict(self._fields)

    async def file(self) -> AsyncIterator[bytes]:
        """Yields the bytes of the file. Raises BadForm if the form breaks off or another part
        follows."""
        while True:
            while self._file:
                yield self._file.popleft()
            if self._form_ended:
                return
            if not await self._feed():
                raise BadForm("the form ends before its last boundary")

    async def _feed(self) -> bool:
        """Parses the next piece of the body; returns False at its end."""
        piece = await anext(self._body, None)
        if piece is None:
            return False
        self._read += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError:
            raise BadForm("the body is not well-formed multipart/form-data") from None
        return True

    def _part_begin(self) -> None:
        if self._file_begun:
            raise BadForm("the file is not the last part of the form")
        self._headers = []
        self._value = b""
        self._field = ""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers.append((self._name.lower(), self._value))
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(dict(self._headers).get(b"content-disposition"))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == FILE_FIELD:
            self._file_begun = True
        elif len(self._fields) >= MAX_FIELDS:
            raise BadForm(f"the form has more than {MAX_FIELDS} fields")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._file_begun:
            if len(self._value) + end - start > MAX_FIELD_BYTES:
                raise BadForm(f"a field of the form has more than {MAX_FIELD_BYTES} bytes")
            self._value += data[start:end]
        else:
            self._file.append(data[start:end])

    def _part_end(self) -> None:
        if not self._file_begun:
            self._fields[self._field] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._form_ended = True
