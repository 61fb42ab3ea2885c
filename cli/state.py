"""The state directory of a suite on one machine: keys, secrets, Postgres and the objects."""

import fcntl
import json
import os
import secrets
from pathlib import Path

from shared.rpc import auth
from shared.settings import SERVICES

LOCAL_ISSUER = "atelier-local"
WORKERS_ISSUER = "atelier-local-workers"
DEFAULT_STATE = Path(__file__).resolve().parent.parent / ".atelier"
PEOPLE_ROLES = ("user", "vendor", "anonymous", "admin")
_SERVICE_ROLES = ("user", "vendor", "anonymous", "service")


class State:
    """Paths of a state directory. `prepare` makes what is missing and never overwrites a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.keys = self.directory / "keys"
        self.logs = self.directory / "logs"
        self.trust_file = self.keys / "trust.json"
        self.storage_secret = self.keys / "storage.secret"
        self.c2pa_certificate = self.keys / "c2pa.pem"
        self.c2pa_key = self.keys / "c2pa-key.pem"
        self.objects = self.directory / "objects"
        self.postgres = self.directory / "postgres"
        self._lock: int | None = None

    def prepare(self) -> None:
        # Other accounts may pass through, because Postgres runs as one when this process is root.
        # Private files are 0600, private directories 0700.
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.keys.mkdir(mode=0o700, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)
        people = auth.create_key(self.keys / "people.jwk")
        entries = [auth.trust_entry(people, issuer=LOCAL_ISSUER, roles=PEOPLE_ROLES)]
        workers = auth.create_key(self.keys / "workers.jwk")
        entries.append(auth.trust_entry(workers, issuer=WORKERS_ISSUER, roles=["service"]))
        for name in SERVICES:
            key = auth.create_key(self.service_key(name))
            entries.append(
                auth.trust_entry(key, issuer=f"atelier-{name}", roles=_SERVICE_ROLES, service=name)
            )
        if not self.trust_file.exists():
            write_private(self.trust_file, json.dumps(entries, indent=1))
        for name in (
            "storage.secret",
            *(f"{s}_{role}.password" for s in SERVICES for role in ("app", "worker")),
        ):
            if not (self.keys / name).exists():
                write_private(self.keys / name, secrets.token_hex(32))

        if not self.c2pa_certificate.exists():
            self._make_c2pa_identity()

    def _make_c2pa_identity(self) -> None:
        """Makes what pictures are signed with until the operator names a certificate that others
        trust."""
        from shared.imaging import certificates

        chain, key = certificates.make_untrusted()
        write_private(self.c2pa_key, key.decode())
        write_private(self.c2pa_certificate, chain.decode())

    def service_key(self, service: str) -> Path:
        return self.keys / f"service-{service}.jwk"

    def password(self, service: str, role: str) -> str:
        return (self.keys / f"{service}_{role}.password").read_text()

    def lock(self) -> bool:
        """Locks the state directory for one suite. Returns False if another suite holds it."""
        handle = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_private(path: Path, text: str) -> None:
    """Writes the file whole or not at all, readable by this account only."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.rename(path)
