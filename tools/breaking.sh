#!/bin/sh
# `buf breaking` against the contract as it is on the main branch. The first contract has nothing to break.
set -eu
base=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! git archive "$base" protos 2>/dev/null | tar -x -C "$scratch" 2>/dev/null; then
    echo 'buf breaking: no contract on main yet'
    exit 0
fi
.venv/bin/python tools/stubs.py --protos "$scratch/protos" --descriptors-only "$scratch/base.binpb"
.venv/bin/buf breaking gen/atelier.binpb --against "$scratch/base.binpb"
