#!/usr/bin/env bash
# A real Prometheus scrapes a real aggregator, as a person would set it up.
#
#   tests/prometheus.sh                        an aggregator and an agent of this machine, started for the test
#   tests/prometheus.sh URL HOST COMMAND...    a running aggregator's HTTP door; COMMAND stops HOST's agent
#
# Checks: the printed scrape configuration is legal; every host that is live is `up` under its own name, with
# node_exporter's metrics; promtool has no complaint about a page but those node_exporter itself earns; a
# stopped agent gives `up` 0 and its series go stale; an aggregator of the test's own is then scraped over TLS
# with a bearer token; Prometheus logs no complaint. Programs are taken from
# MUSTER_BIN_DIR, by default the debug build. Everything runs on loopback, ends within three minutes and leaves
# nothing behind. Needs prometheus, promtool, curl and jq.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly up_within=60      # seconds until Prometheus has found and scraped every live host
readonly down_within=90    # seconds until a stopped agent shows: silent after 15 s, one scrape, stale series
readonly scrape_interval=2 # seconds

# shellcheck source=tests/lib.sh
. tests/lib.sh
tools "prometheus curl jq" prometheus promtool curl jq muster
status_of() { curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' "$@"; }
is_live() { get "$url/sd" | jq -e --arg host "$1" 'any(.[].labels; .instance == $host and .__meta_muster_state == "live")'; }
stop_agent() { "${stop_command[@]}"; }

if [ $# -eq 0 ]; then
    step "starting an aggregator and an agent"
    for door in uplink enrolment operator http; do
        free_port
        declare "$door=$port"
    done
    # shellcheck disable=SC2154 # declared by the loop
    cat >"$work/aggregator.toml" <<TOML
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
TOML
    cat >"$work/agent.toml" <<TOML
interval = "1s"
state_dir = "$work/agent"
runtime_dir = "$work/agent-run"
[uplink]
address = "127.0.0.1:$uplink"
TOML
    # The operator's own files are no business of a test.
    export XDG_CONFIG_HOME="$work/config" MUSTER_AGGREGATOR_CONFIG="$work/aggregator.toml"
    mkdir -m 700 "$work"/{aggregator,aggregator-run,agent,agent-run,config}
    muster-aggregator init >"$work/init.log" 2>&1 || fail "muster-aggregator init"
    start aggregator muster-aggregator serve
    aggregator=$pid
    url=http://127.0.0.1:$http
    eventually 20 "the aggregator ready" get "$url/-/ready"
    (
        umask 077
        muster-aggregator token create >"$work/created" 2>"$work/token.log"
        grep -oiE 'mj1-[0-9a-z-]+' "$work/created" | head -n 1 >"$work/token"
    ) || fail "muster-aggregator token create gave no token"
    eventually 20 "enrolment" muster-agent enrol "127.0.0.1:$enrolment" --token-file "$work/token" --config "$work/agent.toml"
    start agent muster-agent run --config "$work/agent.toml"
    host=$(uname -n)
    stop_command=(kill -TERM "$pid")
    own=yes
elif [ $# -ge 3 ]; then
    url=${1%/} host=$2 own=no
    shift 2
    stop_command=("$@")
else
    sed -n '2,5p' "$0" >&2
    exit 2
fi
eventually 30 "host $host live in $url/sd" is_live "$host"

step "pages"
[ "$(status_of "$url/-/healthy")" = 200 ] || fail "/-/healthy is not 200"
[ "$(status_of "$url/-/ready")" = 200 ] || fail "/-/ready is not 200"
[ "$(status_of "$url/metrics/hosts/no-such-host")" = 404 ] || fail "the page of an unknown host is not 404"
[ "$(status_of "$url/sd?selector=role+in")" = 400 ] || fail "a broken selector is not 400"
[ "$(status_of -X POST "$url/sd")" = 405 ] || fail "POST is not 405"
[ "$(status_of -H 'Host: elsewhere.example' "$url/sd")" = 421 ] || fail "a foreign Host is not 421"
path=$(get "$url/sd" | jq -r --arg host "$host" '.[].labels | select(.instance == $host) | .__metrics_path__')
get "$url$path" >"$work/host.prom"
get "$url/metrics" >"$work/fleet.prom"
get --compressed -H 'Accept: application/openmetrics-text;version=1.0.0' "$url$path" >"$work/host.om"
[ "$(tail -n 1 "$work/host.om")" = "# EOF" ] || fail "the OpenMetrics page does not end with # EOF"

# node_exporter's own page fails promtool for these, and its names are kept so that dashboards work.
inherited="^node_[A-Za-z0-9_]+ (metric names should be written in 'snake_case' not 'camelCase'|use base unit \"bytes\" instead of \"bits\"|no help text)$"
for page in host fleet; do
    # 3: there are complaints, which the filter judges. 1: the page does not parse.
    status=0
    promtool check metrics <"$work/$page.prom" >"$work/complaints" 2>&1 || status=$?
    if [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then
        cat "$work/complaints" >&2
        fail "promtool cannot read the $page page"
    fi
    if grep -vE "$inherited" "$work/complaints" >"$work/own-complaints"; then
        cat "$work/own-complaints" >&2
        fail "promtool complains about the $page page beyond what node_exporter's names earn"
    fi
    printf '   %s page: %s series, %s bytes, %s inherited complaints\n' "$page" \
        "$(grep -c '^[^#]' "$work/$page.prom")" "$(wc -c <"$work/$page.prom")" "$(wc -l <"$work/complaints")"
done

step "configuring Prometheus with what muster prints"
{
    printf 'global:\n  scrape_interval: %ss\n  scrape_timeout: %ss\n' "$scrape_interval" "$scrape_interval"
    muster export prometheus-config --url "$url"
} >"$work/prometheus.yml" 2>"$work/export.log" || fail "muster export prometheus-config"
promtool check config "$work/prometheus.yml" >"$work/config.log" 2>&1 || fail "promtool refuses the printed configuration"

step "scraping"
free_port
prometheus=http://127.0.0.1:$port
start prometheus prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" \
    --web.listen-address="127.0.0.1:$port"
plain_prometheus=$pid

# answer EXPRESSION: the values it has now, one a line; nothing for none.
answer() { get --data-urlencode "query=$1" "$prometheus/api/v1/query" | jq -r '.data.result[].value[1]'; }
# gives VALUE EXPRESSION
gives() {
    local value
    value=$(answer "$2") && printf '%s = %s, expected %s\n' "$2" "${value:-nothing}" "${1:-nothing}" && [ "$value" = "$1" ]
}
holds() { gives "$1" "$2" >"$work/last-answer" || { cat "$work/last-answer" >&2 && fail "a query has another answer"; }; }
live_hosts=$(get "$url/sd" | jq '[.[].labels | select(.__meta_muster_state == "live")] | length')
eventually "$up_within" "up 1 for $host" gives 1 "up{job=\"node\",instance=\"$host\"}"
eventually "$up_within" "up 1 for all $live_hosts live hosts" gives "$live_hosts" 'count(up{job="node"} == 1)'
eventually "$up_within" "up 1 for the aggregator itself" gives 1 'up{job="muster"}'
holds 1 "count(node_uname_info{instance=\"$host\"})"
holds 1 "node_memory_MemTotal_bytes{instance=\"$host\"} > bool 0"
holds 1 "muster_host_up{instance=\"$host\"}"
holds "$live_hosts" 'muster_hosts{job="muster",state="live"}'
# Labels of ours that clash with Prometheus' own would come back under this name.
holds "" 'count({exported_instance!=""} or {exported_job!=""})'
# Idle time would stand still on a machine that is busy with building.
eventually 30 "two scrapes of a counter" gives 1 \
    "rate(node_context_switches_total{instance=\"$host\"}[20s]) > bool 0"
printf '   scrape of %s: %s samples in %s s\n' "$host" "$(answer "scrape_samples_scraped{instance=\"$host\"}")" \
    "$(answer "scrape_duration_seconds{instance=\"$host\"}")"

step "stopping the agent of $host"
stop_agent || fail "\"${stop_command[*]}\" failed"
eventually "$down_within" "up 0 for $host" gives 0 "up{job=\"node\",instance=\"$host\"}"
eventually 30 "stale series of $host" gives "" "node_load1{instance=\"$host\"}"
[ "$(status_of "$url$path")" = 503 ] || fail "the page of a silent host is not 503"
printf '   %s\n' "$(curl --silent --max-time 10 "$url$path")"
holds 1 'up{job="muster"}'

if [ "$own" = yes ]; then
    step "scraping over TLS with a bearer token"
    (umask 077 && head -c 24 /dev/urandom | base64 >"$work/token")
    # The table [http] is the last of the file.
    printf 'tls = true\ntoken_file = "%s"\n' "$work/token" >>"$work/aggregator.toml"
    muster-aggregator check-config >"$work/checked" 2>&1 || fail "muster-aggregator check-config"
    grep -q 'localhost, 127.0.0.1' "$work/checked" || fail "check-config does not name the certificate's names"
    # The Prometheus that knows the plain door would rightly complain.
    kill -TERM "$plain_prometheus" "$aggregator"
    eventually 20 "the end of the plain aggregator" bash -c "! kill -0 $aggregator 2>/dev/null"
    start tls-aggregator muster-aggregator serve
    ca=$work/aggregator/ca/root.crt url=https://127.0.0.1:$http
    eventually 20 "the aggregator ready over TLS" get --cacert "$ca" "$url/-/ready"
    [ "$(status_of --cacert "$ca" "$url/metrics")" = 401 ] || fail "a page without a token is not 401"
    cat >"$work/tls.yml" <<YAML
global: { scrape_interval: ${scrape_interval}s, scrape_timeout: ${scrape_interval}s }
scrape_configs:
  - job_name: node
    scheme: https
    tls_config: &tls { ca_file: "$ca" }
    authorization: &token { type: Bearer, credentials_file: "$work/token" } # 2.42 leaves the type out in discovery
    http_sd_configs:
      - url: $url/sd
        tls_config: *tls
        authorization: *token
  - job_name: muster
    scheme: https
    tls_config: *tls
    authorization: *token
    static_configs:
      - targets: ["127.0.0.1:$http"]
YAML
    promtool check config "$work/tls.yml" >"$work/config.log" 2>&1 || fail "promtool refuses the configuration for TLS"
    free_port
    prometheus=http://127.0.0.1:$port
    start tls-prometheus prometheus --config.file="$work/tls.yml" --storage.tsdb.path="$work/tls-tsdb" \
        --web.listen-address="127.0.0.1:$port"
    eventually "$up_within" "up 1 over TLS" gives 1 'up{job="muster"}'
    # The agent is stopped: it is found over TLS and is down.
    eventually "$up_within" "discovery over TLS" gives 0 "up{job=\"node\",instance=\"$host\"}"
    printf '   %s\n' "$(cat "$work/checked")"
fi

# Duplicate or refused samples are warned of and appear nowhere else.
if cat "$work"/*prometheus.log | grep -E 'level=(warn|error)' | grep -v 'Received SIGTERM' >"$work/warnings"; then
    cat "$work/warnings" >&2
    fail "Prometheus complains"
fi
step "ok"
