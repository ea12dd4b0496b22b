#!/usr/bin/env bash
# A real Alertmanager is told by a real aggregator of a real host that falls silent, and that it is heard again.
#
#   tests/alertmanager.sh
#
# Starts an aggregator, an agent of this machine and an Alertmanager; checks the configuration, tries the channel with
# `muster notify test`, stops the agent and waits for the alert, acknowledges it, starts the agent and waits for the
# alert's end. Programs are taken from MUSTER_BIN_DIR, by default the debug build. Everything runs on loopback, takes
# five minutes at most (an incident is told 20 s after it opens and is over 3 min after it clears) and leaves nothing
# behind. Needs prometheus-alertmanager, curl and jq.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${MUSTER_BIN_DIR:-${CARGO_TARGET_DIR:-target}/debug}
PATH=$(realpath -m "$bin"):$PATH

for tool in prometheus-alertmanager curl jq muster muster-agent muster-aggregator; do
    command -v "$tool" >/dev/null && continue
    echo "error: no $tool; apt-get install prometheus-alertmanager curl jq, and cargo build --workspace for Muster's own" >&2
    exit 1
done

work=$(mktemp -d)
started=()
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
    for pid in "${started[@]}"; do
        kill -TERM "$pid" 2>/dev/null || continue
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

fail() {
    printf 'FAILED: %s\n' "$1" >&2
    for log in "$work"/*.log; do
        [ -s "$log" ] || continue
        printf -- '---- end of %s\n' "${log##*/}" >&2
        tail -n 20 "$log" >&2
    done
    exit 1
}
step() { printf -- '-- %s (%s s)\n' "$1" "$SECONDS"; }

# start NAME COMMAND...: in the background, with its output in NAME.log; its id is in $pid.
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
        sleep 0.5
    done
}

# A port nobody listens on. Another program can take it before it is used: then the program says so.
used_ports=""
free_port() {
    local candidate
    for _ in {1..100}; do
        candidate=$((20000 + RANDOM % 10000))
        [[ " $used_ports " == *" $candidate "* ]] && continue
        (: >"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null && continue
        used_ports+=" $candidate"
        port=$candidate
        return
    done
    fail "no free port found"
}

for door in uplink enrolment operator http alertmanager; do
    free_port
    declare "$door=$port"
done
get() { curl --silent --show-error --fail --max-time 10 "$@"; }
# shellcheck disable=SC2154 # declared by the loop
api=http://127.0.0.1:$alertmanager/api/v2
# alert JQ-CONDITION: an alert that is active and for which this holds.
alert() { get "$api/alerts?active=true" | jq -e "any(.[]; $1)"; }
no_alert() { get "$api/alerts?active=true" | jq -e "all(.[]; ($1) | not)"; }

step "starting an Alertmanager, an aggregator and an agent"
cat >"$work/alertmanager.yml" <<'YAML'
route: { receiver: nobody }
receivers: [{ name: nobody }]
YAML
start alertmanager prometheus-alertmanager --config.file="$work/alertmanager.yml" --storage.path="$work/am" \
    --web.listen-address="127.0.0.1:$alertmanager" --cluster.listen-address=
eventually 30 "the Alertmanager ready" get "http://127.0.0.1:$alertmanager/-/ready"
# shellcheck disable=SC2154 # declared by the loop
cat >"$work/aggregator.toml" <<TOML
fleet_name = "lab"
state_dir = "$work/aggregator"
runtime_dir = "$work/aggregator-run"
[uplink]
listen = "127.0.0.1:$uplink"
[enrolment]
listen = "127.0.0.1:$enrolment"
[operator]
listen = "127.0.0.1:$operator"
[http]
listen = "127.0.0.1:$http"
[[notify]]
name = "am"
type = "alertmanager"
urls = ["http://127.0.0.1:$alertmanager"]
TOML
cat >"$work/agent.toml" <<TOML
interval = "1s"
state_dir = "$work/agent"
runtime_dir = "$work/agent-run"
[uplink]
address = "127.0.0.1:$uplink"
TOML
export XDG_CONFIG_HOME="$work/config" MUSTER_AGGREGATOR_CONFIG="$work/aggregator.toml"
mkdir -m 700 "$work"/{aggregator,aggregator-run,agent,agent-run,config}
muster-aggregator init >"$work/init.log" 2>&1 || fail "muster-aggregator init"
muster-aggregator check-config >"$work/check.log" 2>&1 || fail "muster-aggregator check-config"
start aggregator muster-aggregator serve
eventually 20 "the aggregator ready" get "http://127.0.0.1:$http/-/ready"
muster login --admin-socket "$work/aggregator-run/admin.sock" --name tester >"$work/login.log" 2>&1 || fail "muster login"
(
    umask 077
    muster-aggregator token create >"$work/created" 2>"$work/token.log"
    grep -oiE 'mj1-[0-9a-z-]+' "$work/created" | head -n 1 >"$work/token"
) || fail "muster-aggregator token create gave no token"
eventually 20 "enrolment" muster-agent enrol "127.0.0.1:$enrolment" --token-file "$work/token" --config "$work/agent.toml"
start agent muster-agent run --config "$work/agent.toml"
agent=$pid host=$(uname -n)
is_live() { muster hosts -o json | jq -e --arg host "$host" 'any(.items[]; .name == $host and .state == "live")'; }
eventually 30 "host $host live" is_live

step "trying the channel"
muster notify test am >"$work/test.log" 2>&1 || fail "muster notify test am"
[ "$(muster notify status -o json | jq -r '.items[0].state')" = ok ] || fail "the channel is not ok"
muster notify test nobody >"$work/nobody.log" 2>&1 && fail "a channel that is not there took a message"

step "killing the agent of $host"
kill -KILL "$agent"
silent=".labels.alertname == \"host_silent\" and .labels.instance == \"$host\""
eventually 90 "the alert" alert "$silent and .labels.severity == \"critical\" and .labels.fleet == \"lab\""
get "$api/alerts" | jq -r '.[] | "   \(.labels) \(.annotations.summary)"'
incident=$(get "$api/alerts?active=true" | jq -r ".[] | select($silent) | .labels.incident")
muster ack "$incident" -m "it was me" >"$work/ack.log" 2>&1 || fail "muster ack $incident"
muster incident "$incident" >"$work/incident.txt"
grep -q 'told .*to am' "$work/incident.txt" || fail "the timeline of $incident does not say that am was told"
grep -q 'by tester: it was me' "$work/incident.txt" || fail "the timeline of $incident does not say who acknowledged it"

step "starting it again"
start agent muster-agent run --config "$work/agent.toml"
eventually 30 "host $host live again" is_live
eventually 260 "the end of the alert" no_alert "$silent"
[ "$(muster notify status -o json | jq '.items[0].waiting')" = 0 ] || fail "something waits in the channel"
step "ok"
