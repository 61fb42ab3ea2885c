"""Compilers and clients read more than messages from the contract: a package for each language, and
which rpcs may be sent twice.

Every rpc is a read, or has a request_id that makes its repetition the same call, or stands in
REPEATED with what a repetition does. The server counts who reads what (views, downloads, bytes
behind URLs); this is its own bookkeeping, like a log, which no caller asks for.
"""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor

from tests import calls
from tests.suite import ROOT

LEVEL = descriptor_pb2.MethodOptions.IdempotencyLevel
READ, REPEATABLE, UNKNOWN = LEVEL.NO_SIDE_EFFECTS, LEVEL.IDEMPOTENT, LEVEL.IDEMPOTENCY_UNKNOWN
# Rpcs that are neither reads nor have a request_id, with their level and the reason for it.
REPEATED = {
    "atelier.assets.v1.ErasureService.FollowErasures": (REPEATABLE, "notes who follows, once"),
    "atelier.assets.v1.ErasureService.ReportErasure": (REPEATABLE, "notes the state anew"),
    "atelier.assets.v1.VariantService.GetVariant": (REPEATABLE, "makes a missing variant, once"),
    "atelier.conversions.v1.JobService.HeartbeatJob": (REPEATABLE, "sets the lease's end anew"),
    "atelier.techfiles.v1.ExportService.ReconcileExports": (REPEATABLE, "mends what is left"),
    "atelier.pipeline.v1.PhaseService.HeartbeatPhase": (REPEATABLE, "sets the lease's end anew"),
}
METHODS = {
    calls.name_of(method): method
    for method in calls.methods_of(
        ["assets", "conversions", "pipeline", "techfiles", *calls.OF_EACH]
    )
}
FILES = {
    file.name: file
    for file in descriptor_pb2.FileDescriptorSet.FromString(
        (ROOT / "gen/atelier.binpb").read_bytes()
    ).file
    if file.package.startswith("atelier.")
}


def level(method: MethodDescriptor) -> Any:
    return method.GetOptions().idempotency_level


def takes_request_id(method: MethodDescriptor) -> bool:
    """Returns whether the request, or the head that a stream of requests begins with, has a
    request_id."""
    fields = method.input_type.fields_by_name
    head = fields["head"].message_type if "head" in fields else None
    return "request_id" in fields or (head is not None and "request_id" in head.fields_by_name)


def test_there_are_files_and_methods_to_look_at() -> None:
    found = {
        path.relative_to(ROOT / "protos").as_posix() for path in ROOT.glob("protos/**/*.proto")
    }
    assert set(FILES) == found and set(REPEATED) <= set(METHODS)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_names_its_package_for_each_language(name: str) -> None:
    options = FILES[name].options
    service, stem = name.split("/")[1], name.split("/")[-1].removesuffix(".proto")
    words = "".join(word.capitalize() for word in stem.split("_"))
    assert options.go_package == f"atelier.internal/{service}/v1;{service}v1"
    assert options.java_package == f"atelier.{service}.v1"
    assert options.java_multiple_files and options.java_outer_classname == f"{words}Proto"
    assert options.csharp_namespace == f"Atelier.{service.capitalize()}.V1"


def test_no_class_of_a_file_has_the_name_of_another_in_java() -> None:
    made: list[str] = []
    for file in FILES.values():
        names = [file.options.java_outer_classname, *(each.name for each in file.message_type)]
        names += [each.name for each in file.enum_type] + [each.name for each in file.service]
        made += [f"{file.package}.{name}" for name in names]
    assert len(made) == len(set(made))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_rpc_says_whether_it_may_be_sent_twice(name: str) -> None:
    method = METHODS[name]
    if name in REPEATED:
        assert level(method) == REPEATED[name][0] and not takes_request_id(method)
    elif takes_request_id(method):
        # Without its request_id the rpc does its work again, so the option would promise too much.
        assert level(method) == UNKNOWN, "an rpc with a request_id has no idempotency_level"
    else:
        assert level(method) == READ, (
            "give a read idempotency_level = NO_SIDE_EFFECTS, a change a request_id; if it has"
            " neither, name it in REPEATED with a reason"
        )
