"""Implements `read_credentials`: the reference library reads and validates the C2PA manifest in a
file.

Nothing is fetched: neither a remote manifest nor a certificate's status.
"""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from shared.imaging.model import Credentials
from shared.imaging.source_type import code_of

T = TypeVar("T")

MANIFEST_BYTES = 64 * 1024
_MARK = b"c2pa"  # the label of every manifest store; no container compresses it
_STATES = {"Trusted": "trusted", "Valid": "valid"}
_TEXT = 200
_PROBLEMS = 20


def may_be_in(path: Path) -> bool:
    """Returns whether the file may have a manifest. Few files do, and only these need the
    library."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_MARK) >= 0


def read(path: Path, mime_type: str, trust_anchors: str) -> Credentials | None:
    """Implements `shared.imaging.read_credentials`."""
    import c2pa

    settings: dict[str, Any] = {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}
    }
    if trust_anchors:
        settings["trust"] = {"trust_anchors": trust_anchors}
    try:
        with open(path, "rb") as file, c2pa.Context.from_dict(settings) as context:
            reader = c2pa.Reader.try_create(mime_type, file, context=context)
            if reader is None:
                return None
            with reader:
                return _summary(
                    reader.json(), _STATES.get(reader.get_validation_state() or "", "invalid")
                )
    except c2pa.C2paError as error:
        elsewhere = str(error).startswith("Remote:")  # the file only points to a manifest
        return None if elsewhere else Credentials(state="unreadable")
    except OSError:
        raise
    except Exception:  # any other error of the library is caused by the manifest
        return Credentials(state="unreadable")


def _summary(text: str, state: str) -> Credentials:
    """Summarises a manifest store. Its values are untrusted: those of a wrong type are ignored,
    long ones are cut."""
    store: object = json.loads(text)
    manifest = _of(dict, _of(dict, store, "manifests"), _of(str, store, "active_manifest"))
    signature = _of(dict, manifest, "signature_info")
    validation = _of(dict, _of(dict, store, "validation_results"), "activeManifest")
    failures = [_of(str, failure, "code")[:_TEXT] for failure in _items(validation, "failure")]
    return Credentials(
        state=state,
        claim_generator=_generator(manifest)[:_TEXT],
        signer=_of(str, signature, "issuer")[:_TEXT],
        signer_name=_of(str, signature, "common_name")[:_TEXT],
        signed_at=_of(str, signature, "time")[:_TEXT],
        source_type=_source_type(manifest),
        problems=tuple(dict.fromkeys(filter(None, failures)))[:_PROBLEMS],
        manifest_store=text if len(text.encode()) <= MANIFEST_BYTES else "",
    )


def _generator(manifest: object) -> str:
    for info in _items(manifest, "claim_generator_info"):
        return f"{_of(str, info, 'name')} {_of(str, info, 'version')}".strip()
    return _of(str, manifest, "claim_generator")


def _source_type(manifest: object) -> str:
    """Returns the source type of the action that created the picture; otherwise of the last action
    that states one."""
    said = ""
    for action in _actions(manifest):
        if word := code_of(_of(str, action, "digitalSourceType")):
            said = word
            if _of(str, action, "action") == "c2pa.created":
                break
    return said


def _actions(manifest: object) -> Iterator[object]:
    for assertion in _items(manifest, "assertions"):
        if _of(str, assertion, "label").startswith("c2pa.actions"):
            yield from _items(_of(dict, assertion, "data"), "actions")


def _items(container: object, name: str) -> list[object]:
    return _of(list, container, name)


def _of(kind: type[T], container: object, name: str) -> T:
    """Returns the member of that name if it is a `kind`, else an empty `kind`."""
    found: object = container.get(name) if isinstance(container, dict) else None
    return found if isinstance(found, kind) else kind()
