"""The state directory: what it holds is made once."""

from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from cli.state import State
from shared.imaging.certificates import load_identity


def test_a_certificate_that_says_it_is_untrusted_is_made_once(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    made = state.c2pa_certificate.read_bytes()
    state.prepare()

    assert state.c2pa_certificate.read_bytes() == made
    assert load_identity(state.c2pa_certificate, state.c2pa_key).algorithm == "es256"
    assert state.c2pa_key.stat().st_mode & 0o777 == 0o600
    [name] = x509.load_pem_x509_certificates(made)[0].subject.get_attributes_for_oid(
        NameOID.COMMON_NAME
    )
    assert str(name.value).startswith("Untrusted, made by this installation for tests")
