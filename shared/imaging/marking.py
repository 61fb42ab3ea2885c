"""Implements `sign`: writes a signed C2PA manifest into a picture of our own.

Nothing is fetched: neither a manifest that an ingredient only points to, nor a certificate's
status, nor a time stamp.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

from shared.imaging import credentials
from shared.imaging.model import Claim, Ingredient, SigningFailed, SigningIdentity

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_PARENT = "parentOf"
_INPUT = "inputTo"
# A form counts, since there is no release whose number could be stated.
_GENERATOR = {"name": "Atelier", "version": "1"}
# The domain of the contract's packages, reversed; names of one's own begin with a domain.
_RECIPE = "internal.atelier.recipe"
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
_TINY = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def write_mark(path: Path, out: Path, claim: Claim, identity: SigningIdentity, room: int) -> str:
    """Implements `shared.imaging.sign`."""
    import c2pa

    content = path.read_bytes()
    problem = ""
    for kept in ("all", "parent", "none"):
        try:
            signed = _signed(content, claim, identity, kept)
        except c2pa.C2paError as error:  # an ingredient's manifest may be the cause
            problem = str(error)
            continue
        if len(signed) - len(content) <= room or kept == "none":
            out.write_bytes(signed)
            return kept
    raise SigningFailed(problem)


def try_identity(identity: SigningIdentity) -> None:
    """Implements `shared.imaging.check_identity`."""
    import c2pa

    try:
        _signed(_TINY, Claim("image/png", "digitalCreation", "", "", ""), identity, "none")
    except c2pa.C2paError as error:
        raise SigningFailed(str(error)) from None


def _signed(content: bytes, claim: Claim, identity: SigningIdentity, kept: str) -> bytes:
    import c2pa

    info = c2pa.C2paSignerInfo(identity.algorithm.encode(), identity.chain, identity.key, None)
    with_manifests = [each for each in claim.ingredients if _is_kept(each, kept)]
    manifest = _manifest(claim, with_manifests)
    result = io.BytesIO()
    with (
        c2pa.Context.from_dict(_SETTINGS) as context,
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(json.dumps(manifest), context=context) as builder,
    ):
        for each in with_manifests:
            with each.path.open("rb") as file:
                builder.add_ingredient(json.dumps(_stated(each)), each.mime_type, file)
        builder.sign(signer, claim.mime_type, io.BytesIO(content), result)
    return result.getvalue()


def _is_kept(ingredient: Ingredient, kept: str) -> bool:
    wanted = kept == "all" or (kept == "parent" and ingredient.parent)
    return wanted and credentials.may_be_in(ingredient.path)


def _manifest(claim: Claim, with_manifests: list[Ingredient]) -> dict[str, Any]:
    """Returns the definition of the manifest. It names no person, file, prompt or owner."""
    recipe = {
        "digest": claim.recipe_digest,
        "inputs": [
            {"role": each.role, "sha256": each.sha256}
            for each in claim.ingredients
            if not each.parent
        ],
    }
    assertions: list[dict[str, Any]] = [
        {"label": "c2pa.actions.v2", "data": {"actions": _actions(claim)}}
    ]
    if claim.recipe_digest:
        assertions.append({"label": _RECIPE, "data": recipe})
    return {
        "claim_generator_info": [_GENERATOR],
        "format": claim.mime_type,
        "ingredients": [_stated(each) for each in claim.ingredients if each not in with_manifests],
        "assertions": assertions,
    }


def _actions(claim: Claim) -> list[dict[str, Any]]:
    """Returns what was done: the provider's picture was opened and written anew, if it came with a
    manifest that goes on; otherwise the picture was created."""
    first: dict[str, Any] = {}
    if claim.source_type:
        first["digitalSourceType"] = _SOURCE_TYPES + claim.source_type
    if claim.model:
        agent = {"name": claim.model, "version": claim.model_version}
        first["softwareAgent"] = {name: value for name, value in agent.items() if value}
    parents = [each for each in claim.ingredients if each.parent]
    named = [each.role for each in parents or claim.ingredients]
    first["parameters"] = {"ingredientIds": named}
    if parents:
        return [{"action": "c2pa.opened", **first}, {"action": claim.change}]
    return [{"action": "c2pa.created", **first}]


def _stated(ingredient: Ingredient) -> dict[str, str]:
    return {
        "label": ingredient.role,
        "format": ingredient.mime_type,
        "instance_id": f"sha256:{ingredient.sha256}",
        "relationship": _PARENT if ingredient.parent else _INPUT,
    }
