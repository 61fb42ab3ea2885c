"""A Go program registers each proto file once, or doesn't start. The stubs get along in one program
with the modules that have google/rpc and buf/validate."""

import os

import pytest

from tests.examples.page import BUILD, run
from tests.suite import ROOT

API = "google.golang.org/genproto/googleapis/api@v0.0.0-20261110000943-09e21b237f2c"
PROTOVALIDATE = "buf.build/go/protovalidate@v1.4.0"
MAIN = """
package main

import (
	"fmt"

	"buf.build/go/protovalidate"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/rpc/code"
	_ "google.golang.org/genproto/googleapis/rpc/context/attribute_context"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/genproto/googleapis/rpc/status"

	assets "mainjob/gen/atelier/assets/v1"
STUBS)

func main() {
	fmt.Println(protovalidate.Validate(&assets.GetAssetRequest{AssetId: "none"}))
}
"""


@pytest.mark.examples
@pytest.mark.needs_go
def test_go_stubs_beside_those_of_googleapis_and_protovalidate() -> None:
    packages = sorted(
        path.parent.relative_to(ROOT / "protos").as_posix()
        for path in (ROOT / "protos").rglob("*.proto")
    )
    stubs = "".join(f'\t_ "mainjob/gen/{package}"\n' for package in dict.fromkeys(packages))

    folder = BUILD / "beside-go"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.go").write_text(MAIN.replace("STUBS", stubs))

    said = run(
        {"PATH": f"{os.environ['PATH']}:{ROOT / '.venv' / 'bin'}"},
        "make protos",
        f"cd {folder}",
        f"cp {ROOT}/examples/go/buf.gen.yaml {ROOT}/examples/go/go.* .",
        f"unzip -qo {ROOT}/dist/atelier-protos.zip -d contract",
        "buf generate",
        f"go get {API} {PROTOVALIDATE}",
        "go mod tidy",
        "go run .",
    )
    assert "asset_id: must be a valid UUID" in said
