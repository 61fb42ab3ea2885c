"""The suite accepts what `atelier token` signs, and `atelier trust` says why."""

import json

import pytest

from shared.rpc import auth
from tests.cli.conftest import Command


@pytest.mark.long
def test_a_token_that_the_suite_would_refuse_is_not_printed(atelier_command: Command) -> None:
    good = atelier_command.run("token", "--user", "bob", "--owner", "user:ada")
    trust_file = atelier_command.state / "keys" / "trust.json"
    identity = auth.Verifier(auth.load_trust(trust_file)).identify(f"Bearer {good.stdout.strip()}")
    assert (identity.actor, identity.owner, identity.role) == ("bob", "user:ada", "user")

    refused = atelier_command.run("token", "--anonymous", "--owner", "user:ada")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        "role anonymous for owner user:ada" in refused.stderr and "atelier trust" in refused.stderr
    )

    entries = json.loads(trust_file.read_text())
    entries[0]["owners"] = ["user:a*"]
    trust_file.write_text(json.dumps(entries))
    assert atelier_command.run("token", "--user", "ada").returncode == 0
    assert atelier_command.run("token", "--user", "bob").returncode == 2


@pytest.mark.long
def test_trust_prints_what_keys_may_sign_and_finds_faults(atelier_command: Command) -> None:
    atelier_command.run("token", "--user", "ada")
    trust_file = atelier_command.state / "keys" / "trust.json"
    entries = json.loads(trust_file.read_text())
    entries[0]["owners"] = ["vendor:acme-*"]
    trust_file.write_text(json.dumps(entries))
    printed = atelier_command.run("trust")
    assert printed.returncode == 0
    assert all(
        word in printed.stderr
        for word in ("atelier-local", "vendor:acme-*", "by its roles", "techfiles")
    )

    entries[2]["owners"] = ["acme"]
    trust_file.write_text(json.dumps(entries))
    refused = atelier_command.run("trust", str(trust_file))
    assert (
        refused.returncode == 1
        and "entry 2: owners must be a list of owners such as" in refused.stderr
    )
