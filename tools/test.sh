#!/bin/sh
# Runs the tests that this machine can run. Tests that need Go, Node.js, Java, Rust, a Docker engine, mounts or the reading
# extra are left out where that is missing, and their names are printed; any other test that can't run fails.
#   tools/test.sh test [path ...]     everything but the others; with paths also their long ones
#   tools/test.sh long [path ...]     each takes seconds
#   tools/test.sh reading [path ...]  those that need the reading extra
#   tools/test.sh docs [path ...]     the commands of the documents, as they stand
#   tools/test.sh examples [path ...] clients in other languages: built, and run against a suite
#   tools/test.sh faults [path ...]   long: kills, freezes and cuts real processes
set -eu
kind=$1
shift
others='not docs and not examples and not faults'
case $kind in
    test) marks=$others; [ "$#" -gt 0 ] || marks="$others and not long" ;;
    long) marks="$others and long" ;;
    reading) marks="$others and needs_reading" ;;
    *) marks=$kind ;;
esac
[ "$#" -gt 0 ] || set -- tests

of_kind=$marks
left_out=''
leave_out() {
    marks="$marks and not $1"
    left_out="$left_out $1"
}
programs='versitygw grpcurl'
[ "$kind" != examples ] || programs=go
for program in $programs; do
    [ -x ".tools/bin/$program" ] || command -v "$program" >/dev/null || { leave_out needs_go; break; }
done
command -v npm >/dev/null || leave_out needs_node
command -v javac >/dev/null && command -v mvn >/dev/null || leave_out needs_java
command -v cargo >/dev/null || leave_out needs_rust
[ -e .venv/reading.stamp ] || leave_out needs_reading
docker info >/dev/null 2>&1 || leave_out needs_docker
unshare --mount true 2>/dev/null || leave_out needs_mount

for mark in $left_out; do
    names=$(.venv/bin/python -m pytest --collect-only -q -m "$mark and $of_kind" "$@" 2>/dev/null | grep '::' || true)
    [ -z "$names" ] || printf 'left out (%s):\n%s\n' "$mark" "$names"
done
case $kind in
    # Two workers for each of two cores, since many tests wait for real processes.
    test | long) options='-n 4' ;;
    docs | reading) options='-n 2' ;;
    # No parallel runs: each compiler takes all cores.
    examples) options='--timeout 1800' ;;
    faults) options='--timeout 1200' ;;
esac
# Files run in the order of tests/conftest.py, long ones first, not in the order of their number of tests.
exec .venv/bin/python -m pytest $options --dist loadfile --no-loadscope-reorder -m "$marks" "$@"
