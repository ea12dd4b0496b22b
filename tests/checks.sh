#!/usr/bin/env bash
# Runs checks as an administrator would, with the plugins of the distribution (Debian: monitoring-plugins-basic).
#
#   tests/checks.sh [PATH OF muster-agent]
#
# Exits 0 only if every check found what it should. Listens on loopback only. Needs python3 and openssl besides.
set -euo pipefail
cd "$(dirname "$0")/.."

agent=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug/muster-agent}")
plugins=/usr/lib/nagios/plugins
if [ ! -x "$plugins/check_load" ]; then
    echo "error: no plugins in $plugins; apt-get install monitoring-plugins-basic" >&2
    exit 1
fi
work=$(mktemp -d)
server=""
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
cat >"$work/server.py" <<'END'
# An HTTP server and one over TLS 1.2, on ports of the system's choice, which it writes down.
import http.server, ssl, sys, threading, time
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow": time.sleep(5)
        self.send_response(503 if self.path == "/broken" else 200)
        self.end_headers()
        self.wfile.write(b"all is fine\n")
    def log_message(self, *_): pass
plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
safe = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.load_cert_chain(sys.argv[1] + "/cert.pem", sys.argv[1] + "/key.pem")
safe.socket = context.wrap_socket(safe.socket, server_side=True)
threading.Thread(target=safe.serve_forever, daemon=True).start()
with open(sys.argv[1] + "/ports.new", "w") as ports: ports.write(f"{plain.server_port} {safe.server_port}\n")
import os; os.rename(sys.argv[1] + "/ports.new", sys.argv[1] + "/ports")
plain.serve_forever()
END
python3 "$work/server.py" "$work" &
server=$!
for _ in $(seq 100); do [ ! -e "$work/ports" ] || break; sleep 0.1; done
read -r plain safe <"$work/ports"
closed=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

user=$(id -un)
: >"$work/agent.toml"
# check NAME TYPE KEYS…: one more of them.
check() {
    local name=$1 type=$2 key
    shift 2
    printf '[[check]]\nname = "%s"\ntype = "%s"\ntimeout = "2s"\n' "$name" "$type" >>"$work/agent.toml"
    for key in "$@"; do printf '%s\n' "$key" >>"$work/agent.toml"; done
}
# plugin NAME "WORD", "WORD"…: one that runs a plugin.
plugin() { check "$1" exec "command = [\"$plugins/$2\"$3]" "user = \"$user\""; }

printf '[checks]\nallow_exec = true\n' >>"$work/agent.toml"
plugin load check_load ', "-w", "9999,9999,9999", "-c", "9999,9999,9999"'
plugin load-critical check_load ', "-w", "0,0,0", "-c", "0,0,0"'
plugin disk check_disk ', "-w", "1", "-c", "0", "-p", "/"'
plugin web check_http ", \"-H\", \"127.0.0.1\", \"-p\", \"$plain\""
plugin web-broken check_http ", \"-H\", \"127.0.0.1\", \"-p\", \"$plain\", \"-u\", \"/broken\""
plugin port-closed check_tcp ", \"-H\", \"127.0.0.1\", \"-p\", \"$closed\""
plugin hangs check_http ", \"-H\", \"127.0.0.1\", \"-p\", \"$plain\", \"-u\", \"/slow\""
plugin dummy-warning check_dummy ', "1", "so so"'
plugin dummy-unknown check_dummy ', "3"'
plugin usage check_tcp ''
plugin negated negate ", \"$plugins/check_dummy\", \"2\""
check own-web http "url = \"http://127.0.0.1:$plain/\"" 'contains = "fine"'
check own-broken http "url = \"http://127.0.0.1:$plain/broken\""
check own-slow http "url = \"http://127.0.0.1:$plain/slow\""
check own-refused tcp "address = \"127.0.0.1:$closed\""
check own-tls http "url = \"https://localhost:$safe/\"" "ca_file = \"$work/cert.pem\"" 'expiry_warn = "5d"' 'expiry_crit = "1d"'
check own-expiry tls "address = \"localhost:$safe\"" "ca_file = \"$work/cert.pem\""
check own-untrusted tls "address = \"localhost:$safe\""
check own-file file "path = \"$work/cert.pem\"" 'max_age = "1h"' 'min_size = 100'
check own-process process 'process = "python3"'
check own-nameless dns 'query = "localhost"' 'server = "127.0.0.1:9"'

"$agent" check-config "$work/agent.toml"
failures=0
# expect NAME STATUS RESULT TEXT: runs one by hand; its exit status is the plugin's.
expect() {
    local name=$1 status=$2 result=$3 text=$4 found code=0
    found=$("$agent" --config "$work/agent.toml" check "$name") || code=$?
    if [ "$code" != "$status" ] || ! grep -qE " s  $result: .*$text" <<<"$found"; then
        echo "FAILED $name: wanted exit $status, $result, $text; got exit $code:" >&2
        echo "$found" >&2
        failures=$((failures + 1))
    else
        head -n 1 <<<"$found"
    fi
}
expect load 0 ok 'load average'
expect load-critical 2 plugin 'CRITICAL'
expect disk 0 ok 'free space'
expect web 0 ok 'HTTP OK'
expect web-broken 2 plugin '503'
expect port-closed 2 plugin 'refused'
expect hangs 2 timeout 'killed'
expect dummy-warning 1 plugin 'so so'
expect dummy-unknown 3 plugin 'UNKNOWN'
expect usage 3 plugin 'check_tcp|usage|Usage'
expect negated 0 ok 'CRITICAL'
expect own-web 0 ok 'status 200'
expect own-broken 2 http_status '503'
expect own-slow 2 timeout 'no answer in 2s'
expect own-refused 2 refused 'refused'
expect own-tls 0 ok 'status 200'
expect own-expiry 1 certificate_expiry 'in less than 21d'
expect own-untrusted 2 certificate_untrusted 'certificate'
expect own-file 0 ok 'changed'
expect own-process 0 ok 'python3'
expect own-nameless 2 refused 'refused'

# Performance data in base units.
"$agent" --config "$work/agent.toml" check -o json web disk |
    python3 -c 'import json, sys
items = {item["name"]: item for item in json.load(sys.stdin)["items"]}
units = {m["label"]: m["unit"] for item in items.values() for m in item["measures"]}
assert units["time"] == "seconds" and units["size"] == "bytes" and units["/"] == "bytes", units
assert items["disk"]["measures"][0]["value"] > 1e6, items["disk"]'

# Without permission there are no programs, and the configuration says so.
sed -i 's/^allow_exec = true/allow_exec = false/' "$work/agent.toml"
code=0
"$agent" --config "$work/agent.toml" check load 2>"$work/refused" || code=$?
[ "$code" = 78 ] && grep -q 'checks.allow_exec: .* runs a program, which is off' "$work/refused" || {
    echo "FAILED allow_exec: exit $code" >&2
    failures=$((failures + 1))
}
# No plugin and nothing that one started is left.
if pgrep -f "$plugins/check_http.*-p $plain" >/dev/null; then
    echo "FAILED: a plugin that hung was not killed" >&2
    failures=$((failures + 1))
fi
[ "$failures" = 0 ] || exit 1
echo "all checks found what they should"
