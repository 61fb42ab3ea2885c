"""Certificates with which pictures are signed: reads an operator's, and makes one that nobody
trusts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.imaging.model import SigningIdentity

T = TypeVar("T")

UNTRUSTED_ORGANISATION = "Atelier test certificate"
UNTRUSTED_NAME = "Untrusted, made by this installation for tests"
_CURVES = {"secp256r1": "es256", "secp384r1": "es384"}
_KINDS = "P-256, P-384, Ed25519, or RSA with 2048 bits or more"
_YEARS = timedelta(days=3650)
_LEAST_RSA_BITS = 2048


class CertificateProblem(ValueError):
    """A certificate or key can't be used. The text is one line: which file, why, what to do."""


def load_identity(certificate: Path, key: Path) -> SigningIdentity:
    """Reads a chain and its key. Raises CertificateProblem."""
    chain = _parsed(certificate, x509.load_pem_x509_certificates, "PEM certificates")
    private = _parsed(key, _private_key, "a PEM key without password")
    algorithm = _algorithm(private, key)
    if _public(private.public_key()) != _public(chain[0].public_key()):
        raise CertificateProblem(
            f"{key} is not the key of the first certificate in {certificate}; name the two that"
            " belong together"
        )
    now = datetime.now(UTC)
    starts, expires = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    if now > expires:
        raise CertificateProblem(f"{certificate} expired on {expires:%Y-%m-%d}; renew it")
    if now < starts:
        raise CertificateProblem(f"{certificate} isn't valid before {starts:%Y-%m-%d}")
    return SigningIdentity(
        b"".join(each.public_bytes(Encoding.PEM) for each in chain),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        algorithm,
        expires,
    )


def make_untrusted() -> tuple[bytes, bytes]:
    """Returns a certificate chain and its key, as PEM. The chain begins at an authority whose key
    is thrown away here, and says that nobody trusts it."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = _name(f"{UNTRUSTED_NAME}: authority")
    authority = _certificate(authority_name, authority_key, authority_name, authority_key)
    own = _certificate(_name(UNTRUSTED_NAME), key, authority_name, authority_key, signs=True)
    chain = own.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)
    return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _parsed(path: Path, parse: Callable[[bytes], T], what: str) -> T:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise CertificateProblem(f"{path} can't be read ({error.strerror})") from None
    except (ValueError, TypeError):  # TypeError: the key is encrypted
        raise CertificateProblem(f"{path} has to hold {what}") from None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(pem, None)


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    found = ""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        found = "ed25519"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found = _CURVES.get(key.curve.name, "")
    elif isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        found = "ps256"
    if not found:
        raise CertificateProblem(f"{path} is of a kind that can't sign pictures; use {_KINDS}")
    return found


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, UNTRUSTED_ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    signs: bool = False,
) -> x509.Certificate:
    """Makes the certificate of a signer of pictures, or of an authority."""
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    usage = x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signs,
        crl_sign=not signs,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=not signs, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(authority, critical=False)
    )
    if signs:  # C2PA's profile of certificates wants a purpose
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
