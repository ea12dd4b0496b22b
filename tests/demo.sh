#!/usr/bin/env bash
# The first command of the README, as a newcomer runs it: the demo with five made-up hosts. Checks that the fleet is
# shown with this host live and measured, that the page is served, that `muster` works with the printed
# configuration, and that Ctrl-C leaves no process and no folder behind. Needs a build of the workspace and curl.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --package muster-aggregator --bins
PATH=$(cd "$target/debug" && pwd):$PATH
name=$(uname -n)
work=$(mktemp -d)
mkdir "$work/tmp"
demo=

clean() {
    if [ -n "$demo" ] && kill -0 "$demo" 2>/dev/null; then
        kill -KILL "$demo"
    fi
    rm -rf "$work"
}
trap clean EXIT

fail() {
    echo "FAILED: $*" >&2
    echo "---- the demo's output" >&2
    cat "$work/out" >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $until ] || fail "$what"
        sleep 0.1
    done
}

start() {
    # A shell without job control lets its background processes ignore Ctrl-C; set -m gives it back to them.
    set -m
    TMPDIR=$work/tmp muster-aggregator demo --hosts 5 --for 20s >"$work/out" 2>&1 &
    demo=$!
    set +m
}

shown() { grep -q '^Ends in' "$work/out" || ! kill -0 "$demo" 2>/dev/null; }
gone() { ! kill -0 "$demo" 2>/dev/null; }

began=$(date +%s%N)
start
wait_for 60 "the fleet is not shown" shown
echo "shown after $((($(date +%s%N) - began) / 1000000)) ms"
grep -q '^Ends in' "$work/out" || fail "the demo ended before it showed anything"
grep -q "$name" "$work/out" || fail "this host is not in the fleet"

MUSTER_CONFIG=$(sed -n 's/^ *export MUSTER_CONFIG=//p' "$work/out")
export MUSTER_CONFIG
[ -n "$MUSTER_CONFIG" ] || fail "no MUSTER_CONFIG is printed"
muster hosts -o csv >"$work/hosts" || fail "muster hosts"
[ "$(wc -l <"$work/hosts")" -eq 7 ] || fail "not six hosts: $(cat "$work/hosts")"
muster host "$name" >"$work/host" || fail "muster host $name"
grep -qw live "$work/host" || fail "this host is not live: $(cat "$work/host")"
for words in "top --by cpu" "services" "incidents" "anomalies" "-o json hosts"; do
    # shellcheck disable=SC2086 # words are words
    muster $words >"$work/answer" || fail "muster $words"
done
muster export prometheus-config >"$work/answer" || fail "muster export prometheus-config"
# It exits 1 when it has found something, which is its business; it must not fail.
muster doctor >"$work/answer" || [ $? -le 2 ] || fail "muster doctor: $(cat "$work/answer")"

page=$(sed -n "s/.*curl -s \(http[^ ]*\/metrics\/hosts\/[^ ]*\).*/\1/p" "$work/out")
[ -n "$page" ] || fail "no page is printed"
curl -fsS "$page" >"$work/page" || fail "$page"
for family in node_cpu_seconds_total node_memory_MemTotal_bytes node_filesystem_size_bytes muster_host_up; do
    grep -q "^${family}[{ ]" "$work/page" || fail "the page has no $family"
done
curl -fsS "${page%/metrics/*}/sd" | grep -q "$name" || fail "discovery does not name this host"

kill -INT "$demo"
wait_for 15 "Ctrl-C does not end it" gone
wait "$demo" || fail "after Ctrl-C it exits with $?"
[ -z "$(ls -A "$work/tmp")" ] || fail "left behind: $(ls "$work/tmp")"
demo=
echo "demo: fleet, page, commands and a clean end"
