#!/usr/bin/env bash
# Runs as root in a fresh Debian booted with systemd: /test holds the packages, /out takes the log.
# Every step says what it expects; the first that fails ends the test, with what the services said.
set -euo pipefail
exec >/out/log 2>&1
export HOME=/root
cd /root

step() {
    printf -- '-- %s (%s s)\n' "$1" "$SECONDS"
    current=$1
}

fail() {
    trap - ERR
    printf 'FAILED at "%s": %s\n' "$current" "$1"
    printf '\nstate of the units:\n'
    systemctl --no-pager --full status 'muster-*' || true
    printf '\njournal:\n'
    journalctl --no-pager --boot -u 'muster-*' | tail -n 60
    exit 1
}
trap 'fail "$BASH_COMMAND (line $LINENO) gave $?"' ERR

# eventually SECONDS WHAT COMMAND…: the command succeeds within that time.
eventually() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/run/eventually 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            cat /run/eventually
            fail "$what did not come true; the last answer of \"$*\" is above"
        fi
        sleep 0.2
    done
}

holds() { "$@" || fail "$*"; }
# nothing COMMAND…: it succeeds and prints nothing.
nothing() {
    local answer
    answer=$("$@") || fail "$*"
    [ -z "$answer" ] || fail "$* says: $answer"
}
refuted() { if "$@"; then fail "expected not: $*"; fi; }
active() { systemctl --quiet is-active "$1"; }
property() { systemctl show --property="$2" --value "$1"; }

# A host's line of `muster hosts`: in a pipe, columns separated by tabs.
host_is() { muster hosts | grep -E "^$HOSTNAME	" | grep -qwE "$1"; }
said_goodbye() { muster host "$HOSTNAME" | grep -qxE "silenceCause	stopped"; }
in_failed() { muster services --failed | grep -q "$1"; }
owned_by() { [ -z "$(find "$2" ! -user "$1" -print -quit)" ]; }
identity() { sha256sum /var/lib/muster-agent/identity/{key,chain}.pem; }

step "installing"
dpkg --install /test/*.deb
for unit in muster-agent muster-aggregator; do
    holds systemctl --quiet is-enabled $unit.service
    holds active $unit.path
    refuted active $unit.service
done
nothing systemctl list-units --failed --plain --no-legend 'muster-*'
holds [ "$(stat -c '%U %a' /var/lib/muster-agent)" = "muster-agent 700" ]
holds [ "$(stat -c '%U %a' /var/lib/muster)" = "muster 700" ]
holds muster-agent check-config
holds muster-aggregator check-config

# Every second, so that the test need not wait for the default of ten; it also shows that overlays are read.
printf 'interval = "1s"\n' >/etc/muster/agent.d/test.toml

step "setting up the aggregator"
muster-aggregator init | tee /out/init
holds owned_by muster /var/lib/muster
eventually 20 "muster-aggregator started by its path unit" active muster-aggregator.service
holds [ "$(property muster-aggregator User)" = muster ]

step "signing in as an operator"
muster whoami || muster login --admin-socket /run/muster/admin.sock --name ci --role admin
holds muster whoami

step "enrolling this host"
(umask 077 && muster-aggregator token create >created && grep -oiE 'mj1-[0-9a-z-]+' created | head -n 1 >token)
holds owned_by muster /var/lib/muster
# The door opens within a second of the token's making.
eventually 5 "joining" muster-agent enrol 127.0.0.1:7444 --token-file token
holds owned_by muster-agent /var/lib/muster-agent
eventually 20 "muster-agent started by its path unit" active muster-agent.service
eventually 20 "this host live in the fleet" host_is live
holds [ "$(property muster-agent User)" = muster-agent ]
pid=$(property muster-agent MainPID)
# By the agent itself: without a check that runs programs it cannot, and had nothing to complain about.
refuted grep -q 'keeps the ability to run programs' <(journalctl --boot --no-pager -u muster-agent -o cat)
holds grep -qE '^CapEff:\s+0+$' "/proc/$pid/status"
holds grep -qE '^NoNewPrivs:\s+1$' "/proc/$pid/status"
holds [ -z "$(ss --no-header --listening --tcp --udp --processes | grep -w muster-agent)" ]
muster-agent status
muster doctor

step "seeing a unit fail"
printf '[Service]\nExecStart=/bin/false\n' >/etc/systemd/system/broken.service
systemctl daemon-reload
refuted in_failed broken.service
systemctl start broken.service || true
eventually 30 "broken.service among the failed services" in_failed broken.service
systemctl reset-failed broken.service
rm /etc/systemd/system/broken.service
systemctl daemon-reload

step "telling of units of every kind"
# unit NAME LINE…: a unit file of these lines.
unit() {
    local name=$1
    shift
    printf '%s\n' "$@" >"/etc/systemd/system/$name"
}
unit crashes.service '[Unit]' 'StartLimitIntervalSec=0' '[Service]' 'ExecStart=/bin/sh -c "exit 3"' 'Restart=always' 'RestartSec=200ms'
unit slow.service '[Service]' 'Type=notify' 'ExecStart=/bin/sleep 60' 'TimeoutStartSec=1'
unit 'many@.service' '[Service]' 'ExecStart=/bin/sleep infinity'
unit ticks.timer '[Timer]' 'OnActiveSec=1s' 'OnUnitActiveSec=1h' 'AccuracySec=100ms'
unit ticks.service '[Service]' 'Type=oneshot' 'ExecStart=/bin/true'
unit missed.timer '[Timer]' 'OnCalendar=2001-01-01'
unit missed.service '[Service]' 'ExecStart=/bin/true'
unit counts.socket '[Socket]' 'ListenStream=/run/counts.sock' 'Accept=yes'
unit 'counts@.service' '[Service]' 'ExecStart=/bin/cat' 'StandardInput=socket'
systemctl daemon-reload
systemctl mask --quiet hidden.service
systemctl start --no-block crashes.service slow.service many@one.service
systemctl start ticks.timer missed.timer counts.socket
# told SERIES: it stands on the agent's own page of this moment, with the value in the pattern.
told() { muster-agent sample --collector "${2:-systemd}" --format prometheus 2>/dev/null | grep -qE "^$1\$"; }
name='name="crashes.service"'
# A restart takes a moment of "activating"; the loop shows in every state.
eventually 30 "several restarts counted" told "node_systemd_service_restart_total\{$name\} ([3-9]|[0-9]{2,})"
eventually 30 "the crashing service's exit status" told "muster_host_systemd_unit_exit_status\{$name\} 3"
holds told "muster_host_systemd_unit_result\{$name,result=\"exit-code\"\} 1"
eventually 30 "a start that timed out" told 'muster_host_systemd_unit_result\{name="slow.service",result="timeout"\} 1'
holds told 'node_systemd_unit_state\{name="slow.service",state="failed",type="notify"\} 1'
holds told 'node_systemd_unit_state\{name="many@one.service",state="active",type="simple"\} 1'
refuted told 'node_systemd_unit_state\{name="hidden.service".* 1'
eventually 30 "a timer that ran" told 'node_systemd_timer_last_trigger_seconds\{name="ticks.timer"\} 1[0-9.e+]+'
holds told 'node_systemd_timer_last_trigger_seconds\{name="missed.timer"\} 0'
refuted told 'muster_host_systemd_timer_next_trigger_seconds\{name="missed.timer"\} .*'
holds told 'node_systemd_socket_accepted_connections_total\{name="counts.socket"\} 0'
# And to an operator: the service itself counts the restarts that it saw.
in_series() { curl -fsS "http://127.0.0.1:7446/metrics/hosts/$HOSTNAME" | grep -qE "^$1"; }
if command -v curl >/dev/null; then
    eventually 30 "a crash loop counted" in_series "muster_host_systemd_unit_restarts_recent\{.*$name.*\} [0-9]"
fi
eventually 30 "slow.service among the failed services" in_failed slow.service
eventually 30 "crashes.service among them, as one state" in_failed 'crashes.service.*crash-loop'
# Where the host lets a container account for its services.
if [ -f /sys/fs/cgroup/system.slice/muster-agent.service/memory.current ]; then
    holds told 'muster_host_systemd_unit_memory_bytes\{name="muster-agent.service"\} [1-9].*' unit_usage
fi
systemctl stop crashes.service many@one.service ticks.timer missed.timer counts.socket
systemctl unmask --quiet hidden.service
rm /etc/systemd/system/{crashes,slow,many@,ticks,missed,counts@}.service /etc/systemd/system/{ticks,missed}.timer \
    /etc/systemd/system/counts.socket
systemctl daemon-reload
systemctl reset-failed

step "measuring the same under the unit as root does without it"
# The service's own sandbox round one pass of the collectors.
sed -e 's|^Type=.*|Type=oneshot|' -e 's|^ExecStart=.*|ExecStart=/usr/bin/muster-agent sample --format prometheus|' \
    -e '/^Watchdog/d' -e '/^Restart/d' -e '/^StateDirectory/d' -e '/^RuntimeDirectory/d' -e '/^\[Install\]/,$d' \
    /lib/systemd/system/muster-agent.service >/run/systemd/system/truth.service
sed -i -e '/^\[Service\]/a StandardOutput=file:/out/confined.prom\nReadWritePaths=/var/lib/muster-agent /run/muster-agent' \
    /run/systemd/system/truth.service
systemctl daemon-reload
systemctl start truth.service
muster-agent sample --format prometheus >/out/root.prom
# systemd's own figures know that one more unit is running; the agent's are about the process.
series() { grep -v '^#' "$1" | grep -vE '^(node_systemd|muster_agent|process)_|name="truth.service"' | sed 's/ [^ ]*$//' | sort; }
holds diff <(series /out/root.prom) <(series /out/confined.prom)
steady='^(node_filesystem_(size_bytes|files|readonly)|node_memory_(MemTotal|SwapTotal)_bytes|node_uname_info|node_os_info|node_boot_time_seconds|node_scrape_collector_success)[ {]'
holds diff <(grep -E "$steady" /out/root.prom | sort) <(grep -E "$steady" /out/confined.prom | sort)
echo "$(series /out/root.prom | wc -l) series are there both ways"

step "upgrading keeps the identity and restarts once"
before=$(identity) invocation=$(property muster-agent InvocationID)
dpkg --install /test/muster-agent_*.deb
holds active muster-agent.service
refuted [ "$(property muster-agent InvocationID)" = "$invocation" ]
holds [ "$(property muster-agent NRestarts)" = 0 ]
holds [ "$(identity)" = "$before" ]
eventually 20 "this host live again" host_is live
holds [ "$(muster hosts | grep -c "^$HOSTNAME")" = 1 ]

step "upgrading the aggregator under a connected agent"
dpkg --install /test/muster-aggregator_*.deb
eventually 20 "the aggregator back" active muster-aggregator.service
eventually 30 "this host live again" host_is live

step "stopping says goodbye"
systemctl stop muster-agent.service
eventually 10 "this host stopped, not merely silent" said_goodbye
# A service somebody stopped stays so, after an upgrade too.
dpkg --install /test/muster-agent_*.deb
refuted active muster-agent.service
systemctl start muster-agent.service
eventually 20 "this host live again" host_is live

step "having nothing to complain about in the journal"
nothing journalctl --boot --no-pager --quiet --priority=err -u muster-agent -u muster-aggregator -o cat
holds [ "$(property muster-agent NRestarts)" = 0 ]
holds [ "$(property muster-aggregator NRestarts)" = 0 ]

step "being killed and coming back"
kill -KILL "$(property muster-agent MainPID)" "$(property muster-aggregator MainPID)"
eventually 20 "the aggregator restarted" active muster-aggregator.service
eventually 20 "the agent restarted" active muster-agent.service
eventually 30 "this host live again" host_is live

step "a wrong configuration ends it, and not in a loop"
printf 'intervall = "1s"\n' >/etc/muster/agent.d/wrong.toml
systemctl restart muster-agent.service || true
eventually 10 "muster-agent failed" systemctl --quiet is-failed muster-agent.service
holds [ "$(property muster-agent ExecMainStatus)" = 78 ]
holds [ "$(property muster-agent NRestarts)" = 0 ]
rm /etc/muster/agent.d/wrong.toml
systemctl reset-failed muster-agent.service
systemctl start muster-agent.service

step "removing keeps identity and configuration"
dpkg --remove muster-agent
refuted active muster-agent.service
refuted active muster-agent.path
refuted pgrep -x muster-agent
holds [ "$(identity)" = "$before" ]
holds [ -e /etc/muster/agent.toml ]
dpkg --install /test/muster-agent_*.deb
eventually 20 "muster-agent back with its old identity" active muster-agent.service
eventually 20 "this host live again" host_is live

step "purging leaves nothing, and says so"
dpkg --purge muster-agent | tee /out/purge
holds grep -q 'deleting /var/lib/muster-agent' /out/purge
dpkg --purge muster-aggregator muster | tee /out/purge
holds grep -q 'deleting /var/lib/muster ' /out/purge
for left in /etc/muster /var/lib/muster /var/lib/muster-agent /run/muster /run/muster-agent \
    /usr/bin/muster /usr/bin/muster-agent /usr/bin/muster-aggregator; do
    refuted [ -e "$left" ]
done
refuted pgrep -f /usr/bin/muster
refuted systemctl list-unit-files --no-legend 'muster*'
nothing systemctl list-units --failed --plain --no-legend 'muster*'

trap - ERR
echo "all steps passed"
