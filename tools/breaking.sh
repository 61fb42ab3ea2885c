#!/bin/sh
# Runs `buf breaking`: compares the contract with the newest release tag. Before the first release it compares a clean
# tree with the commit before it, a changed tree with its own commit.
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
# FILE rules report an option that a file didn't have before as a change. If no file of the base
# names a package for any language, and no rpc its idempotency, nobody could rely on a name or a
# promise: against such a base those rules are left out. Every later base has the options, and all
# FILE rules hold for it.
cp buf.yaml "$scratch/buf.yaml"
if ! grep -rq '^option go_package' "$scratch/protos"; then
    sed -i 's/^  use: \[FILE\]/&\n  except: [FILE_SAME_CSHARP_NAMESPACE, FILE_SAME_GO_PACKAGE, \
    FILE_SAME_JAVA_MULTIPLE_FILES, FILE_SAME_JAVA_OUTER_CLASSNAME, FILE_SAME_JAVA_PACKAGE, \
    RPC_SAME_IDEMPOTENCY_LEVEL]/' "$scratch/buf.yaml"
fi
.venv/bin/buf breaking gen/atelier.binpb --against "$scratch/base.binpb" --config "$scratch/buf.yaml"
