"""Each comment of the contract says by itself what its reader needs, since a generator prints it
far from its neighbours. One comment says what holds for every call, with the figures that the
server keeps to."""

import re

import pytest
from google.rpc import code_pb2

from shared.background import waiting, watches
from shared.rpc import errors, guard, server
from shared.settings import load
from tests.contract.test_options import FILES
from tests.suite import ROOT

COLUMNS = 100
# A comment that begins with one of these lacks its subject.
FRAGMENT = re.compile(
    r"(Of|Whose|Who|Such as|At most|As asked|As given|As it is|UUID|Bytes|Pixels|Newest|None|Being|"
    r"There(?=\.)|\d[\d,]* to|0:|It is (gone|there)|That|Those|The same)\b"
)
SETTINGS = load("assets")


def comments(name: str) -> list[str]:
    """Returns each comment of a file, in one line."""
    found = FILES[name].source_code_info.location
    return [" ".join(location.leading_comments.split()) for location in found]


def comment_of(name: str, element: str) -> str:
    """Returns the comment of a message or an enum."""
    file = FILES[name]
    kinds: list[tuple[int, list[str]]] = [
        (file.MESSAGE_TYPE_FIELD_NUMBER, [each.name for each in file.message_type]),
        (file.ENUM_TYPE_FIELD_NUMBER, [each.name for each in file.enum_type]),
    ]
    path = next([number, names.index(element)] for number, names in kinds if element in names)
    [found] = [each for each in file.source_code_info.location if list(each.path) == path]
    return " ".join(found.leading_comments.split())


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_comment_says_what_it_is_about(name: str) -> None:
    fragments = [text for text in comments(name) if FRAGMENT.match(text)]
    assert fragments == [], "Begin each with its subject: 'The width in pixels.', not 'Pixels.'"


@pytest.mark.parametrize("name", sorted(FILES))
def test_lines_are_short_enough_to_be_read(name: str) -> None:
    lines = (ROOT / "protos" / name).read_text().splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert long == [], f"Wrap these lines of protos/{name} before column {COLUMNS + 1}"


def test_what_every_call_can_answer_is_said_once_and_every_service_refers_to_it() -> None:
    said = [text for name in FILES for text in comments(name) if "Every call can answer" in text]
    assert said == [comment_of("atelier/common/v1/errors.proto", "ErrorReason")]
    for file in FILES.values():
        for number, service in enumerate(file.service):
            path = [file.SERVICE_FIELD_NUMBER, number]
            [about] = [each for each in file.source_code_info.location if list(each.path) == path]
            assert "atelier.common.v1.ErrorReason" in about.leading_comments, service.name


def test_every_watch_and_every_wait_says_where_its_rules_stand() -> None:
    for name, file in FILES.items():
        for place in file.source_code_info.location:
            path = list(place.path)
            if path[:1] == [file.SERVICE_FIELD_NUMBER] and len(path) == 4:
                method = file.service[path[1]].method[path[3]]
                if method.name.startswith("Watch"):
                    assert "atelier.common.v1.Bookmark" in place.leading_comments, (
                        f"the comment of {method.name} must refer to atelier.common.v1.Bookmark"
                    )
            if path[:1] == [file.MESSAGE_TYPE_FIELD_NUMBER] and len(path) == 4:
                field = file.message_type[path[1]].field[path[3]]
                if field.name == "wait" and field.type == field.TYPE_BOOL:
                    text = " ".join(place.leading_comments.split())
                    assert "atelier.common.v1.Wait" in text, (
                        f"{name}: the comment of `wait` must refer to atelier.common.v1.Wait"
                    )


def test_the_figures_of_every_call_are_those_of_the_server() -> None:
    text = comment_of("atelier/common/v1/errors.proto", "ErrorReason")
    for figure in (
        f"remembered for {SETTINGS.answer_retention_hours:g} hours",
        f"has {SETTINGS.default_deadline_seconds:g} seconds (ATELIER_DEFAULT_DEADLINE_SECONDS)",
        f"and {SETTINGS.max_deadline_seconds:g} (ATELIER_MAX_DEADLINE_SECONDS) at most",
        f"pauses for {guard._IDLE_UPLOAD_SECONDS:g} seconds",
        f"slower than {guard._SLOWEST // 1000} kB a second",
        f"carries {server.MAX_STREAMS_PER_CONNECTION} calls at once",
        f"at most {server.MAX_MESSAGE_BYTES // 1024**2} MiB",
        f"every {server.LEAST_PING_INTERVAL_MS // 1000} seconds",
    ):
        assert figure in text, figure
    assert guard._HEAD_START_SECONDS == 60 and "after its first minute" in text


def test_the_figures_of_waits_and_watches_are_those_of_the_server() -> None:
    text = comment_of("atelier/common/v1/wait.proto", "Wait")
    assert waiting._ANSWER_SECONDS == 0.5 and "half a second before it" in text
    assert f"{SETTINGS.default_deadline_seconds:g} seconds unless" in text
    assert f"ATELIER_JOB_WAIT_HOURS, {SETTINGS.job_wait_hours:g} by default" in text
    text = comment_of("atelier/common/v1/watch.proto", "Bookmark")
    assert f"every {watches.BOOKMARK_SECONDS:g} seconds" in text
    [kept] = [each for each in comments("atelier/common/v1/watch.proto") if "valid as long" in each]
    assert f"{SETTINGS.event_retention_hours:g} hours (ATELIER_EVENT_RETENTION_HOURS)" in kept


def test_every_reason_says_the_status_that_it_has() -> None:
    file = FILES["atelier/common/v1/errors.proto"]
    texts = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
    [enum] = file.enum_type
    for index, value in enumerate(enum.value):
        text = texts[(file.ENUM_TYPE_FIELD_NUMBER, 0, enum.VALUE_FIELD_NUMBER, index)]
        if value.number:
            status = code_pb2.Code.Name(errors._CODES[value.number])
            assert text.strip().startswith(f"{status}. "), value.name


def test_a_field_that_was_replaced_says_by_what() -> None:
    for name, file in FILES.items():
        texts = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
        for number, message in enumerate(file.message_type):
            for index, field in enumerate(message.field):
                if field.options.deprecated:
                    path = (file.MESSAGE_TYPE_FIELD_NUMBER, number, 2, index)
                    assert "The older spelling of view_type" in texts[path], (name, field.name)


def test_there_are_comments_to_look_at() -> None:
    assert sum(bool(text) for name in FILES for text in comments(name)) > 2000
