"""Pictures of our own are signed so that programs which nobody here wrote say that they hold."""

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from shared.imaging import (
    Claim,
    ImagingPool,
    Ingredient,
    SigningFailed,
    SigningIdentity,
    check_identity,
    read_credentials,
    sign,
)
from shared.imaging.certificates import CertificateProblem, load_identity, make_untrusted
from tests import npm
from tests.shared.imaging import pictures, signing

FORMATS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
TRAINED = "trainedAlgorithmicMedia"
ROOM = 1 << 20
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> SigningIdentity:
    return identity_of(tmp_path_factory.mktemp("identity"), *make_untrusted())


def identity_of(directory: Path, chain: bytes, key: bytes) -> SigningIdentity:
    (directory / "chain.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(key)
    return load_identity(directory / "chain.pem", directory / "key.pem")


def picture(path: Path, width: int = 96) -> Path:
    path.write_bytes(bytes(pictures.textured(width, 64).write_to_buffer(path.suffix)))
    return path


def claim(mime_type: str = "image/jpeg", *ingredients: Ingredient) -> Claim:
    return Claim(mime_type, TRAINED, "painter", "3", "5e" * 32, ingredients)


def signed_input(path: Path, **fields: Any) -> Path:
    path.write_bytes(signing.signed(picture(path).read_bytes(), **fields))
    return path


def active(store: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = store["manifests"][store["active_manifest"]]
    return found


def judged(*paths: Path) -> list[bool]:
    """Returns what c2pa-ts, an implementation of its own in TypeScript, says of each file."""
    npm.install()
    script = Path(__file__).with_name("judge.mjs").read_text()
    run = npm.MODULES.parent / "judge.mjs"
    run.write_text(script)
    done = subprocess.run(["node", run, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    verdicts: list[bool] = json.loads(done.stdout)
    return verdicts


@pytest.mark.parametrize("mime_type", FORMATS)
async def test_a_signed_picture_holds_and_a_changed_one_does_not(
    pool: ImagingPool, identity: SigningIdentity, tmp_path: Path, mime_type: str
) -> None:
    plain = picture(tmp_path / f"plain{FORMATS[mime_type]}")
    out = tmp_path / "out"
    assert await pool.run(sign, plain, out, claim(mime_type), identity, ROOM) == "all"

    read = await pool.run(read_credentials, out, mime_type)
    assert read is not None and read.state == "valid"
    assert (read.claim_generator, read.source_type) == ("Atelier 1", TRAINED)
    assert read.signer == "Atelier test certificate" and "Untrusted" in read.signer_name
    assert read.problems == ("signingCredential.untrusted",)
    assert out.stat().st_size - plain.stat().st_size < 5_000, "a manifest costs some kilobytes"

    original = plain.read_bytes()
    out.write_bytes(signing.tampered(out.read_bytes(), original))
    changed = await pool.run(read_credentials, out, mime_type)
    assert changed is not None and changed.state == "invalid"
    assert "assertion.dataHash.mismatch" in changed.problems


async def test_the_manifest_names_inputs_by_digest_and_no_file(
    pool: ImagingPool, identity: SigningIdentity, tmp_path: Path
) -> None:
    photo = picture(tmp_path / "ada-lovelace.jpg")
    given = Ingredient("user-1", photo, "image/jpeg", "ab" * 32)
    out = tmp_path / "out.jpg"
    await pool.run(
        sign, picture(tmp_path / "plain.jpg"), out, claim("image/jpeg", given), identity, ROOM
    )

    read = await pool.run(read_credentials, out, "image/jpeg")
    assert read is not None
    manifest = active(json.loads(read.manifest_store))
    [ingredient] = manifest["ingredients"]
    assert ingredient["instance_id"] == "sha256:" + "ab" * 32
    assert ingredient["relationship"] == "inputTo" and "title" not in ingredient
    by_label = {each["label"]: each["data"] for each in manifest["assertions"]}
    recipe = by_label["internal.atelier.recipe"]
    assert recipe == {"digest": "5e" * 32, "inputs": [{"role": "user-1", "sha256": "ab" * 32}]}
    [action] = by_label["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["softwareAgent"] == {"name": "painter", "version": "3"}
    assert b"lovelace" not in out.read_bytes()


async def test_manifests_of_provider_and_inputs_are_kept_while_there_is_room(
    pool: ImagingPool, identity: SigningIdentity, tmp_path: Path
) -> None:
    theirs = signed_input(tmp_path / "theirs.jpg", generator="Their Model")
    camera = signed_input(tmp_path / "camera.jpg")
    parent = Ingredient("provider", theirs, "image/jpeg", "cd" * 32, parent=True)
    given = Ingredient("user-1", camera, "image/jpeg", "ab" * 32)
    plain, out = picture(tmp_path / "plain.jpg"), tmp_path / "out.jpg"
    whole = claim("image/jpeg", parent, given)

    assert await pool.run(sign, plain, out, whole, identity, ROOM) == "all"
    read = await pool.run(read_credentials, out, "image/jpeg")
    assert read is not None and read.state == "valid"
    store = json.loads(read.manifest_store)
    generators = [each["claim_generator_info"][0]["name"] for each in store["manifests"].values()]
    assert sorted(generators) == ["Atelier", "Test Camera", "Their Model"]
    assert [each["relationship"] for each in active(store)["ingredients"]] == [
        "parentOf",
        "inputTo",
    ]

    grown = out.stat().st_size - plain.stat().st_size
    assert await pool.run(sign, plain, out, whole, identity, grown - 1) == "parent"
    assert await pool.run(sign, plain, out, whole, identity, 10) == "none"
    read = await pool.run(read_credentials, out, "image/jpeg")
    assert (
        read is not None
        and read.state == "valid"
        and len(active(json.loads(read.manifest_store))["ingredients"]) == 2
    )


async def test_a_broken_manifest_of_an_input_keeps_nothing_from_being_signed(
    pool: ImagingPool, identity: SigningIdentity, tmp_path: Path
) -> None:
    camera = signed_input(tmp_path / "camera.jpg")
    content = camera.read_bytes()
    at = content.index(b"c2pa")
    camera.write_bytes(content[: at + 40] + bytes(200) + content[at + 240 :])
    given = Ingredient("user-1", camera, "image/jpeg", "ab" * 32)
    plain, out = picture(tmp_path / "plain.jpg"), tmp_path / "out.jpg"

    await pool.run(sign, plain, out, claim("image/jpeg", given), identity, ROOM)
    read = await pool.run(read_credentials, out, "image/jpeg")
    assert read is not None and read.state == "valid"


@pytest.mark.needs_node
async def test_an_implementation_that_nobody_here_wrote_says_the_same(
    pool: ImagingPool, identity: SigningIdentity, tmp_path: Path
) -> None:
    theirs = signed_input(tmp_path / "theirs.jpg")
    parent = Ingredient("provider", theirs, "image/jpeg", "cd" * 32, parent=True)
    given = Ingredient("user-1", picture(tmp_path / "in.jpg"), "image/jpeg", "ab" * 32)
    files = []
    for mime_type in ("image/jpeg", "image/png"):
        plain = picture(tmp_path / f"plain{FORMATS[mime_type]}")
        for number, made_of in enumerate([(), (given,), (parent, given)]):
            out = tmp_path / f"out-{number}{plain.suffix}"
            await pool.run(sign, plain, out, claim(mime_type, *made_of), identity, ROOM)
            files.append(out)
        changed = tmp_path / f"changed{plain.suffix}"
        changed.write_bytes(signing.tampered(files[-3].read_bytes(), plain.read_bytes()))
        files.append(changed)
    assert judged(*files) == [True, True, True, False] * 2


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "es256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
    ],
)
async def test_each_kind_of_key_signs(
    pool: ImagingPool, tmp_path: Path, make: Callable[[], Any], algorithm: str
) -> None:
    identity = identity_of(tmp_path, *signing.chain_of(make()))
    assert identity.algorithm == algorithm and "PRIVATE" not in repr(identity)
    await pool.run(check_identity, identity)

    plain, out = picture(tmp_path / "plain.jpg"), tmp_path / "out.jpg"
    await pool.run(sign, plain, out, claim(), identity, ROOM)
    read = await pool.run(read_credentials, out, "image/jpeg")
    assert read is not None and (read.state, read.signer) == ("valid", signing.SIGNER)


async def test_a_certificate_that_may_not_sign_is_told_before_any_picture(
    pool: ImagingPool, tmp_path: Path
) -> None:
    identity = identity_of(tmp_path, *signing.chain_of(purpose=False))
    with pytest.raises(SigningFailed):
        await pool.run(check_identity, identity)


def test_what_is_wrong_with_a_certificate_or_key_is_one_line(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    chain, key = signing.chain_of()
    other = make_untrusted()[1]
    private = signing.key_of(key)
    locked = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    small = rsa.generate_private_key(65537, 1024).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    expired = signing.chain_of(private, starts=now - 9 * DAY, ends=now - 2 * DAY)[0]
    early = signing.chain_of(private, starts=now + DAY, ends=now + 2 * DAY)[0]
    cases = [
        (chain, other, "not the key of the first certificate"),
        (chain, locked, "PEM key without password"),
        (chain, b"nonsense", "PEM key without password"),
        (key, key, "PEM certificates"),
        (chain, small, "RSA with 2048 bits"),
        (expired, key, f"expired on {now - 2 * DAY:%Y-%m-%d}; renew it"),
        (early, key, f"isn't valid before {now + DAY:%Y-%m-%d}"),
    ]
    for certificate, private_pem, words in cases:
        with pytest.raises(CertificateProblem) as problem:
            identity_of(tmp_path, certificate, private_pem)
        assert words in str(problem.value) and "\n" not in str(problem.value)
    with pytest.raises(CertificateProblem, match="No such file"):
        load_identity(tmp_path / "missing", tmp_path / "key.pem")
