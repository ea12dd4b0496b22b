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

# shellcheck source=tests/lib.sh
. tests/lib.sh
tools "prometheus-alertmanager curl jq" prometheus-alertmanager curl jq muster muster-agent muster-aggregator

for door in uplink enrolment operator http alertmanager; do
    free_port
    declare "$door=$port"
done
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
muster incident "$incident" -o json >"$work/incident.json"
# in_timeline JQ-CONDITION: something that happened to the incident for which this holds.
in_timeline() { jq -e "[.. | .transitions? // empty | .[]] | any(.[]; $1)" "$work/incident.json" >"$work/last-answer"; }
in_timeline '.what == "told" and (.evidence | endswith(" to am"))' || fail "the timeline of $incident does not say that am was told"
in_timeline '.what == "acknowledged" and .actor == "tester" and .evidence == "it was me"' ||
    fail "the timeline of $incident does not say who acknowledged it"

step "starting it again"
start agent muster-agent run --config "$work/agent.toml"
eventually 30 "host $host live again" is_live
eventually 260 "the end of the alert" no_alert "$silent"
[ "$(muster notify status -o json | jq '.items[0].waiting')" = 0 ] || fail "something waits in the channel"
step "ok"
