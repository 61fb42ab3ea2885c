"""Authentication: tokens, the keys that may sign them, and the identity of a call.

A token is a JWT signed with Ed25519: `iss`, `aud`, `sub` (the acting person or program), `owner`
(the tenant; by default `<role>:<sub>`), `role`, `exp`, `kid` in the header. A key is bound to its
issuer and to the roles and owners that it may sign. An entry of the trust file names both;
`TrustedKey.may_own` describes one that names no owners. A service that calls for an owner signs a
short-lived token with `act`, naming itself; then the owner's rights apply, if the method's policy
lists that service.
"""

import base64
import json
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OKPKey

from shared.rpc.errors import DomainError, Reason, not_found

AUDIENCE = "atelier"
ALGORITHMS = ["Ed25519", "EdDSA"]  # one algorithm under its new and its old name (RFC 9864)
ROLES = ("user", "vendor", "anonymous", "service", "admin")
CLOCK_SKEW = 30.0  # seconds that an issuer's clock may be ahead
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_OWNER = re.compile(r"(user|vendor|anonymous|service|admin):[\x21-\x7e]{1,120}")
_OWNERS = re.compile(
    r"\*|(user|vendor|anonymous|service|admin):([\x21-\x29\x2b-\x7e]{1,120}\*?|\*)"
)
_ENTRY = {"issuer", "roles", "owners", "service", "jwk"}
_SUBJECT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,120}")
_CACHED_TOKENS = 10_000
_log = structlog.get_logger("auth")

# The old algorithm name is accepted on purpose; joserfc warns at each use.
warnings.filterwarnings("ignore", category=SecurityWarning, message=".*EdDSA.*")


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller: `actor` acts on the rows of `owner`. `service` is the service that calls for the
    owner, None for a direct call. `expires_at` is in seconds since 1970."""

    actor: str
    owner: str
    role: str
    expires_at: float
    service: str | None = None


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may sign. `roles` are the roles it may sign. A key of `service` also
    signs for owners of these roles. Each of `owners` is one owner such as `user:ada` or, with `*`
    at its end, a prefix. If `owners` is None, see `may_own`."""

    issuer: str
    key: OKPKey
    roles: frozenset[str]
    service: str | None
    owners: tuple[str, ...] | None = None

    def may_own(self, role: str, owner: str) -> bool:
        """Returns whether this key may sign a token of `role` for `owner`.

        If the trust file names no owners, a key may sign owners of the kinds of its roles: a key
        for anonymous only `anonymous:...`, a key for users and vendors both of theirs. An admin may
        act in any owner, and so may a service of the suite, since its jobs serve all owners. But
        role anonymous is limited to anonymous owners, and role service to service owners.
        """
        kind = owner.partition(":")[0]
        if self.service is not None and role == "service" and kind != "service":
            # This holds whatever the entry says: for an owner a service acts in the owner's role,
            # where policies list the service.
            return False
        if self.owners is not None:
            return any(
                owner.startswith(o[:-1]) if o.endswith("*") else owner == o for o in self.owners
            )
        if role in ("anonymous", "service"):
            return kind == role
        return role == "admin" or self.service is not None or kind in self.roles


_current: ContextVar[Identity] = ContextVar("identity")


def current() -> Identity:
    """Returns the identity of the current call or job. A handler always has one."""
    return _current.get()


def enter(identity: Identity) -> None:
    """Sets the identity for this task: that of a call, or of a job as read from its row."""
    _current.set(identity)


def act_for(owner: str) -> str:
    """Enters the tenant context of the owner that the call is about, and returns that owner: for an
    operator the named one, for others only their own. Raises NOT_FOUND for another owner.

    The rest of the call sees that owner's rows alone.
    """
    identity = current()
    if identity.role == "admin":
        enter(replace(identity, owner=owner))
        return owner
    if owner not in ("", identity.owner):
        raise not_found("owner", owner)
    return identity.owner


def share_of(owner: str) -> str:
    """Returns the name under which an owner's calls and jobs are counted for fair shares. All
    anonymous owners have one together: anybody may become another one at any time."""
    return "anonymous" if owner.startswith("anonymous:") else owner


def current_share() -> str:
    """Returns the share that the current work counts towards; '' for work without an owner."""
    identity = _current.get(None)
    return share_of(identity.owner) if identity else ""


def _refused(text: str) -> DomainError:
    return DomainError(
        Reason.ERROR_REASON_TOKEN_INVALID, f"{text}; get a new token (`atelier token --help`)"
    )


class Verifier:
    """Turns an `authorization` header into an Identity. Caches results until the token expires."""

    def __init__(self, keys: Iterable[TrustedKey], audience: str = AUDIENCE) -> None:
        self._keys = {key.key.kid: key for key in keys}
        self._audience = audience
        self._seen: OrderedDict[str, Identity] = OrderedDict()

    def identify(self, header: str | None) -> Identity:
        """Returns the caller's identity. Raises TOKEN_INVALID, whose text never holds the token."""
        if not header:
            raise _refused("no token: send metadata `authorization: Bearer <token>`")
        scheme, _, token = header.strip(" ").partition(" ")
        # RFC 9110 allows any case and any number of spaces.
        if scheme.lower() != "bearer" or not token:
            raise _refused("the authorization metadata must read `Bearer <token>`")
        token = token.lstrip(" ")
        identity = self._seen.get(token)
        if identity is None:
            identity = self._verify(token)
            self._seen[token] = identity
            if len(self._seen) > _CACHED_TOKENS:
                self._seen.popitem(last=False)
        if identity.expires_at <= time.time():
            self._seen.pop(token, None)
            raise _refused("the token has expired")
        return identity

    def _verify(self, token: str) -> Identity:
        segments = token.split(".")
        if len(segments) != 3 or not all(map(_canonical, segments)):
            raise _refused("the token is malformed: expected three base64url parts without padding")
        try:
            header = json.loads(_decode(segments[0]))
            trusted = self._keys[header["kid"]]
            decoded = jwt.decode(token, trusted.key, algorithms=ALGORITHMS)
        except (KeyError, TypeError, AttributeError):
            raise _refused("the token names no key that this server trusts") from None
        except (ValueError, RecursionError, JoseError):
            raise _refused("the token's signature or header is not valid") from None
        if decoded.header.get("typ", "JWT") != "JWT" or "crit" in decoded.header:
            raise _refused("the token is of another type")
        return self._identity(decoded.claims, trusted)

    def _identity(self, claims: Mapping[str, Any], trusted: TrustedKey) -> Identity:
        now = time.time()
        if claims.get("iss") != trusted.issuer:
            raise _refused("the token's issuer is not the one its key belongs to")
        if claims.get("aud") not in (self._audience, [self._audience]):
            raise _refused(f"the token is for another audience: expected aud {self._audience!r}")
        expires_at = claims.get("exp")
        if expires_at is None or not _is_time(expires_at) or expires_at <= now:
            raise _refused("the token has expired")
        if not all(
            _is_time(claims[name]) and claims[name] <= now + CLOCK_SKEW
            for name in ("nbf", "iat")
            if name in claims
        ):
            raise _refused("the token is not valid yet")
        role, subject = claims.get("role"), claims.get("sub")
        if not isinstance(role, str) or role not in trusted.roles:
            raise _refused("the token's key may not sign this role")
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise _refused("the token names nobody: sub must have 1 to 120 characters")
        owner = claims.get("owner", f"{role}:{subject}")
        if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
            raise _refused("the token's owner must look like user:ada or vendor:acme")
        if not trusted.may_own(role, owner):
            _log.warning(
                "a key may not sign this owner; the trust file bounds it",
                issuer=trusted.issuer,
                kid=trusted.key.kid,
                role=role,
                owner=owner,
            )
            raise _refused(f"the token's key may not sign this owner for role {role}")
        return Identity(
            actor=subject,
            owner=owner,
            role=role,
            expires_at=expires_at,
            service=self._acting_service(claims, trusted),
        )

    def _acting_service(self, claims: Mapping[str, Any], trusted: TrustedKey) -> str | None:
        """Returns the service of the token, if any. A service's key signs for itself (role service)
        or for an owner; for an owner, `act` must name the service."""
        act = claims.get("act")
        if trusted.service is None:
            if act is not None:
                raise _refused("only a service of the suite may act for an owner")
            return None
        if claims["role"] == "service":
            return trusted.service
        if not isinstance(act, dict) or act.get("sub") != trusted.service:
            raise _refused("a service that acts for an owner must name itself in `act`")
        return trusted.service


def _is_time(value: object) -> bool:
    # JSON parsers accept NaN and Infinity, and a token that expires at NaN would never expire.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _canonical(segment: str) -> bool:
    """Returns whether the segment is in its one canonical encoding. Libraries also accept padding
    and stray low bits, which would make tokens malleable."""
    if not _SEGMENT.fullmatch(segment) or len(segment) % 4 == 1:
        return False
    return base64.urlsafe_b64encode(_decode(segment)).rstrip(b"=").decode() == segment


def sign(
    key: OKPKey,
    *,
    issuer: str,
    subject: str,
    role: str,
    seconds: float,
    owner: str | None = None,
    act: str | None = None,
) -> str:
    """Returns a signed token that is valid for `seconds` from now."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": subject,
        "role": role,
        "iat": now,
        "exp": now + seconds,
        "owner": owner or f"{role}:{subject}",
    }
    if act:
        claims["act"] = {"sub": act}
    return jwt.encode(
        {"alg": "Ed25519", "kid": key.kid, "typ": "JWT"}, claims, key, algorithms=["Ed25519"]
    )


class ServiceCredentials:
    """A service's credentials for calls to other services for an owner: tokens that last a minute,
    cached for half of that."""

    def __init__(self, service: str, key: OKPKey) -> None:
        self._service = service
        self._key = key
        self._tokens: OrderedDict[tuple[str, str, str], tuple[float, str]] = OrderedDict()

    def metadata(self, identity: Identity) -> tuple[tuple[str, str], ...]:
        wanted = (identity.actor, identity.owner, identity.role)
        made_at, token = self._tokens.get(wanted, (0.0, ""))
        if time.time() - made_at > 30:
            token = sign(
                self._key,
                issuer=f"atelier-{self._service}",
                subject=identity.actor,
                role=identity.role,
                seconds=60,
                owner=identity.owner,
                act=self._service,
            )
            self._tokens[wanted] = (time.time(), token)
            if len(self._tokens) > _CACHED_TOKENS:
                self._tokens.popitem(last=False)
        return (("authorization", f"Bearer {token}"),)


# Keys on disk. A private key file holds one JWK and has mode 0600; the trust file lists public keys
# and what each may sign.


def create_key(path: Path) -> OKPKey:
    """Creates a signing key that only this account can read, or loads an existing one."""
    if not path.exists():
        key = OKPKey.generate_key("Ed25519", {"use": "sig"}, private=True)
        key.ensure_kid()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(key.as_dict(private=True)))
        temporary.rename(path)
    return load_key(path)


def load_key(path: Path) -> OKPKey:
    return OKPKey.import_key(json.loads(path.read_text()))


def trust_entry(
    key: OKPKey, *, issuer: str, roles: Sequence[str], service: str | None = None
) -> dict[str, Any]:
    return {
        "issuer": issuer,
        "roles": list(roles),
        "service": service,
        "jwk": key.as_dict(private=False),
    }


def load_trust(path: Path) -> list[TrustedKey]:
    """Reads the trust file: a JSON list of {issuer, roles, owners, service, jwk}, where `owners`
    and `service` are optional. Raises OSError; ValueError naming the faulty entry."""
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: it must be a list of entries")
    trusted = []
    for index, entry in enumerate(entries):
        try:
            trusted.append(_trusted(entry))
        except (KeyError, TypeError, ValueError, JoseError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: entry {index}: {what}") from None
    return trusted


def _trusted(entry: Any) -> TrustedKey:
    """Parses one entry. Raises KeyError, TypeError, ValueError, JoseError."""
    # Unknown names are refused, so that a misspelt restriction isn't ignored.
    if not isinstance(entry, dict) or entry.keys() - _ENTRY:
        raise ValueError(
            f"it must be an object with no other names than {', '.join(sorted(_ENTRY))}"
        )
    roles, owners, service = entry["roles"], entry.get("owners"), entry.get("service")
    if not _texts(roles) or not set(roles) <= set(ROLES):
        raise ValueError(f"roles must be a list of some of {', '.join(ROLES)}")
    if owners is not None and not (
        owners and _texts(owners) and all(map(_OWNERS.fullmatch, owners))
    ):
        raise ValueError(
            "owners must be a list of owners such as user:ada, user:*, vendor:acme-* or *"
        )
    if not isinstance(entry["issuer"], str) or not isinstance(service, str | None):
        raise ValueError("issuer must be a text, service a text or null")
    key = OKPKey.import_key(entry["jwk"])
    key.ensure_kid()
    return TrustedKey(
        entry["issuer"], key, frozenset(roles), service, None if owners is None else tuple(owners)
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
