#!/bin/sh
# `buf breaking`: the contract as it is, against the newest release tag; before the first release, against the commit
# before a clean tree or the one under a changed tree.
set -eu
base=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -z "$base" ]; then
    if git diff --quiet HEAD -- protos; then base=HEAD^; else base=HEAD; fi
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! git archive "$base" protos 2>/dev/null | tar -x -C "$scratch" 2>/dev/null; then
    echo 'buf breaking: there is no earlier contract to compare with'
    exit 0
fi
.venv/bin/python tools/stubs.py --protos "$scratch/protos" --descriptors-only "$scratch/base.binpb"
# FILE rules report an option that a file didn't have before as a change. A base in which no file
# names a package for any language, and no rpc its idempotency, gave nobody a name or a promise to
# rely on: against it those rules say nothing. Every base after it has the options, and is held to
# all of FILE.
cp buf.yaml "$scratch/buf.yaml"
if ! grep -rq '^option go_package' "$scratch/protos"; then
    sed -i 's/^  use: \[FILE\]/&\n  except: [FILE_SAME_CSHARP_NAMESPACE, FILE_SAME_GO_PACKAGE, \
    FILE_SAME_JAVA_MULTIPLE_FILES, FILE_SAME_JAVA_OUTER_CLASSNAME, FILE_SAME_JAVA_PACKAGE, \
    RPC_SAME_IDEMPOTENCY_LEVEL]/' "$scratch/buf.yaml"
fi
.venv/bin/buf breaking gen/atelier.binpb --against "$scratch/base.binpb" --config "$scratch/buf.yaml"
