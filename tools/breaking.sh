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
.venv/bin/buf breaking gen/atelier.binpb --against "$scratch/base.binpb"
