"""Pictures with content credentials, signed with certificates that are made here, too."""

import io
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CAPTURE = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
SIGNER = "Camera Makers Ltd"
SIGNER_NAME = "Jo Photographer"


def _name(organisation: str, common_name: str) -> x509.Name:
    pairs = (
        (NameOID.COUNTRY_NAME, "GB"),
        (NameOID.ORGANIZATION_NAME, organisation),
        (NameOID.COMMON_NAME, common_name),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def _certificate(
    subject: x509.Name,
    key: Any,
    issuer: x509.Name,
    issuer_key: Any,
    *,
    authority: bool,
    purpose: bool = True,
    starts: datetime | None = None,
    ends: datetime | None = None,
) -> Any:
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts or now - timedelta(days=1))
        .not_valid_after(ends or now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                **usage,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not authority and purpose:
        made = made.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
    return made.sign(issuer_key, hashes.SHA256())


def chain_of(key: Any = None, **options: Any) -> tuple[bytes, bytes]:
    """Returns a chain of two certificates and the signer's key, as PEM. `options`: what differs
    from a good certificate."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = _name("Root Authority", "root")
    root = _certificate(root_name, root_key, root_name, root_key, authority=True)
    subject = _name(SIGNER, SIGNER_NAME)
    own = _certificate(subject, key, root_name, root_key, authority=False, **options)
    chain = own.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM)
    return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_of(pem: bytes) -> Any:
    return load_pem_private_key(pem, None)


@cache
def _signer() -> tuple[Any, str]:
    """Returns a signer, and the root certificate of its chain as PEM."""
    chain, private = chain_of()
    root = x509.load_pem_x509_certificates(chain)[-1]
    return (
        c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, private, None)),
        root.public_bytes(Encoding.PEM).decode(),
    )


def trust_anchor() -> str:
    return _signer()[1]


def signed(
    content: bytes,
    mime_type: str = "image/jpeg",
    *,
    source_type: str = CAPTURE,
    generator: str = "Test Camera",
    remote: str = "",
    note: str = "",
) -> bytes:
    """Returns the picture with a manifest in it; with `remote`, with the address of one only."""
    created = {"action": "c2pa.created", "digitalSourceType": source_type}
    manifest = {
        "claim_generator_info": [{"name": generator, "version": "1.2"}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": "org.example.note", "data": {"note": note or "canary-note"}},
        ],
    }
    result = io.BytesIO()
    with c2pa.Builder(json.dumps(manifest)) as builder:
        if remote:
            builder.set_no_embed()
            builder.set_remote_url(remote)
        builder.sign(_signer()[0], mime_type, io.BytesIO(content), result)
    return result.getvalue()


def tampered(content: bytes, original: bytes) -> bytes:
    """Returns other pixels under the same manifest: one byte in the middle of the signed data
    differs."""
    middle = len(original) // 2
    at = content.index(original[middle : middle + 16])
    return content[:at] + bytes([content[at] ^ 0x01]) + content[at + 1 :]
