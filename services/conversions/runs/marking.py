"""Signs the pictures that a trained model made, before they are stored.

It happens in a child process of its own, limited like those that decode, since ingredients bring
foreign manifests; and apart from those, so that no process that decodes foreign pixels has the key.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from services.conversions import rules
from services.conversions.providers.contract import Picture
from shared.background import attempts
from shared.imaging import (
    Claim,
    ImageRejected,
    ImagingPool,
    Ingredient,
    SigningFailed,
    SigningIdentity,
    check_identity,
    sign,
)
from shared.imaging.certificates import CertificateProblem, load_identity
from shared.settings import Settings, WrongSetting

_SECONDS = 20.0
_ROOM = 1024 * 1024  # for manifests; that of a camera or a provider has some 10 to 300 kB
_EXPIRED_PAUSE_SECONDS = 600.0
_log = structlog.get_logger("marking")


@dataclass(frozen=True)
class Source:
    """An input of a picture."""

    role: str
    path: Path
    mime_type: str
    sha256: str


class Marker:
    """Signs with one certificate. `largest`: the most bytes that a stored picture may have."""

    def __init__(self, pool: ImagingPool, identity: SigningIdentity, largest: int) -> None:
        self._pool = pool
        self._identity = identity
        self._largest = largest

    def check(self) -> None:
        """Raises Waits if the certificate has expired. Ask before a call that costs money."""
        expires = self._identity.expires_at
        if datetime.now(UTC) < expires:
            return
        _log.error("the certificate that pictures are signed with expired", expired=str(expires))
        raise attempts.Waits(
            "c2pa_certificate",
            rules.UNAVAILABLE,
            f"the certificate that pictures are signed with expired on {expires:%Y-%m-%d}; the"
            " operator has to renew it",
            _EXPIRED_PAUSE_SECONDS,
        )

    async def signed(
        self, picture: Picture, mime_type: str, recipe_digest: str, inputs: Sequence[Source]
    ) -> Path:
        """Returns a signed copy of a picture that was made. Raises JobFailed."""
        claim = Claim(
            mime_type,
            picture.source_type,
            picture.model.name,
            picture.model.version,
            recipe_digest,
            (*_parents(picture), *_ingredients(inputs)),
        )
        try:
            return await self.sign(picture.path, claim)
        except ImageRejected as refusal:  # it ran out of time or memory
            raise attempts.JobFailed(rules.TIMED_OUT, refusal.message, final=False) from None
        except SigningFailed:
            text = "the picture can't be signed; the operator finds the cause in the worker's log"
            raise attempts.JobFailed(rules.UNAVAILABLE, text, final=False) from None

    async def sign(self, path: Path, claim: Claim) -> Path:
        """Returns a signed copy of the file, beside it. Raises SigningFailed; ImageRejected if it
        takes too long."""
        out = path.with_name(f"signed-{path.name}")
        room = min(_ROOM, self._largest - path.stat().st_size)
        try:
            kept = await self._pool.run(
                sign, path, out, claim, self._identity, room, timeout=_SECONDS
            )
        except SigningFailed as failure:
            _log.error("a picture can't be signed", cause=str(failure))
            raise
        if kept != "all":
            _log.warning("manifests of ingredients are left out", kept=kept)
        return out

    async def try_certificate(self) -> None:
        """Raises WrongSetting if C2PA's rules forbid to sign with the certificate."""
        try:
            await self._pool.run(check_identity, self._identity, timeout=_SECONDS)
        except SigningFailed as failure:
            await self.close()
            raise WrongSetting(
                f"ATELIER_C2PA_CERTIFICATE: C2PA doesn't allow to sign with it ({failure}); its"
                " profile of certificates says what is needed"
            ) from None

    async def close(self) -> None:
        await self._pool.close()


def open_marker(settings: Settings) -> Marker | None:
    """Returns what signs pictures, or None if there is no certificate. Raises WrongSetting."""
    if not (settings.c2pa_certificate and settings.c2pa_key):
        if settings.c2pa_certificate or settings.c2pa_key:
            raise WrongSetting("ATELIER_C2PA_CERTIFICATE and ATELIER_C2PA_KEY need each other")
        _log.warning("pictures aren't signed: no ATELIER_C2PA_CERTIFICATE")
        return None
    try:
        identity = load_identity(settings.c2pa_certificate, settings.c2pa_key)
    except CertificateProblem as problem:
        raise WrongSetting(f"ATELIER_C2PA_CERTIFICATE and ATELIER_C2PA_KEY: {problem}") from None
    return Marker(ImagingPool(1), identity, settings.max_image_bytes)


def _parents(picture: Picture) -> list[Ingredient]:
    """Returns the provider's own file, if that had a manifest."""
    if picture.original is None:
        return []
    path, mime_type = picture.original
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [Ingredient("provider", path, mime_type, digest, parent=True)]


def _ingredients(inputs: Sequence[Source]) -> list[Ingredient]:
    return [
        Ingredient(f"{each.role}-{number}", each.path, each.mime_type, each.sha256)
        for number, each in enumerate(inputs, start=1)
    ]
