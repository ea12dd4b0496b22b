# shellcheck shell=bash
# What tests with several programs share: sourced, after `set -euo pipefail`, from the repository's root.
#
# A folder of the test's own in $work; programs in the background whose output is NAME.log there; all of it is ended
# and removed when the test ends, and shown when it fails. Programs of Muster's own come from MUSTER_BIN_DIR, by
# default the debug build.

bin=${MUSTER_BIN_DIR:-${CARGO_TARGET_DIR:-target}/debug}
PATH=$(realpath -m "$bin"):$PATH

# tools PACKAGES COMMAND...: the commands are there, or it says how to get them.
tools() {
    local packages=$1 tool
    shift
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        echo "error: no $tool; apt-get install $packages, and cargo build --workspace for Muster's own" >&2
        exit 1
    done
}

work=$(mktemp -d)
started=()
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
    local id
    for id in "${started[@]}"; do
        kill -TERM "$id" 2>/dev/null || continue
        for _ in {1..50}; do
            kill -0 "$id" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$id" 2>/dev/null || true
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

fail() {
    local log
    printf 'FAILED: %s\n' "$1" >&2
    for log in "$work"/*.log; do
        [ -s "$log" ] || continue
        printf -- '---- end of %s\n' "${log##*/}" >&2
        tail -n 20 "$log" >&2
    done
    exit 1
}

step() { printf -- '-- %s (%s s)\n' "$1" "$SECONDS"; }

# start NAME COMMAND...: in the background, with its output at the end of NAME.log; its id is in $pid.
start() {
    local name=$1
    shift
    "$@" >>"$work/$name.log" 2>&1 &
    pid=$!
    started+=("$pid")
}

# eventually SECONDS WHAT COMMAND...: the command succeeds within that time.
eventually() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/last-answer" 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            cat "$work/last-answer" >&2
            fail "$what did not come true; the last answer of \"$*\" is above"
        fi
        sleep 0.3
    done
}

# free_port: a port nobody listens on, in $port. Another program can take it before it is used: then the program that
# was to have it says so.
used_ports=""
free_port() {
    local candidate
    for _ in {1..100}; do
        candidate=$((20000 + RANDOM % 10000))
        [[ " $used_ports " == *" $candidate "* ]] && continue
        (: >"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null && continue
        used_ports+=" $candidate"
        # shellcheck disable=SC2034 # for whoever asked
        port=$candidate
        return
    done
    fail "no free port found"
}

get() { curl --silent --show-error --fail --max-time 10 "$@"; }
