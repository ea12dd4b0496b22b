#!/usr/bin/env bash
# Installs the three packages under a real systemd and uses them as a person would.
#
#   tests/package.sh [--bin-dir DIR | --debug | --debs DIR]
#
# Builds the packages (as packaging/build-deb does with the same options, or takes those in --debs), boots a minimal
# Debian in systemd-nspawn with a network of its own, and runs tests/package/inside.sh there. Exits 0 only if every step
# in there passed. Needs root, mmdebstrap, systemd-nspawn and jq; the tree is made from the distribution's packages once
# and kept in the target folder, everything else is thrown away. Nothing runs for more than five minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

build=(packaging/build-deb) debs=""
while [ $# -gt 0 ]; do
    case $1 in
        --bin-dir) build+=("$1" "$2") && shift 2 ;;
        --debug) build+=("$1") && shift ;;
        --debs) debs=$2 && shift 2 ;;
        *) echo "error: unknown option $1; see the top of tests/package.sh" >&2 && exit 2 ;;
    esac
done

if [ "$(id -u)" -ne 0 ]; then
    echo "error: tests/package.sh boots a container, which only root may; run it with sudo" >&2
    exit 1
fi
for tool in mmdebstrap systemd-nspawn systemd-analyze dpkg-deb; do
    if ! command -v "$tool" >/dev/null; then
        echo "error: $tool is not installed; apt-get install mmdebstrap systemd-container dpkg-dev" >&2
        exit 1
    fi
done

kept=$(realpath -m "${CARGO_TARGET_DIR:-target}")/package-test
mkdir -p "$kept"
work=$(mktemp -d "$kept/run.XXXXXX")
nspawn=""
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
    if [ -n "$nspawn" ] && kill -0 "$nspawn" 2>/dev/null; then
        kill -TERM "$nspawn" 2>/dev/null || true
        sleep 1
        kill -KILL "$nspawn" 2>/dev/null || true
    fi
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

echo "== units"
# The programs are not installed here, so the check sees units that start something which is.
mkdir "$work/units"
for unit in systemd/*.service systemd/*.path; do
    sed 's|^ExecStart=/usr/bin/muster[a-z-]* |ExecStart=/bin/true |' "$unit" >"$work/units/${unit##*/}"
done
systemd-analyze verify --man=no --recursive-errors=no "$work"/units/*
# The exposure that was reached, times ten: a directive lost shows here (docs/decisions/011-packages.md).
systemd-analyze security --offline=true --threshold=21 --no-pager systemd/muster-agent.service | tail -n 1
systemd-analyze security --offline=true --threshold=12 --no-pager systemd/muster-aggregator.service | tail -n 1

echo "== packages"
mkdir "$work/share" "$work/out"
if [ -z "$debs" ]; then
    debs=$work/debs
    "${build[@]}" --out "$debs"
fi
cp "$debs"/muster{,-agent,-aggregator}_*.deb "$work/share/"
cp tests/package/inside.sh "$work/share/"
if command -v lintian >/dev/null; then
    # No bug asks for these packages, as they are in no archive.
    lintian --allow-root --suppress-tags initial-upload-closes-no-bugs --fail-on error,warning "$work"/share/*.deb
fi

echo "== a Debian to boot"
include=systemd,systemd-sysv,dbus,libpam-systemd,iproute2,procps,util-linux,jq
# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
tree=$kept/tree-$suite-$(md5sum <<<"$include" | head -c 8).tar
if [ ! -f "$tree" ]; then
    mmdebstrap --quiet --format=tar --variant=minbase --include="$include" "$suite" "$tree.part"
    mv "$tree.part" "$tree"
fi
mkdir "$work/tree"
tar -xf "$tree" -C "$work/tree"
cat >"$work/tree/etc/systemd/system/ci.service" <<'UNIT'
[Unit]
After=multi-user.target dbus.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash /test/inside.sh
TimeoutStartSec=240
[Install]
WantedBy=default.target
UNIT
chroot "$work/tree" systemctl --quiet enable ci.service
echo muster-test >"$work/tree/etc/hostname"

echo "== inside"
# --volatile: all changes go to memory and are gone afterwards.
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after=10 300 systemd-nspawn --quiet --register=no --keep-unit \
    --volatile=overlay --directory="$work/tree" --machine="muster-test-$$" --boot --private-network --link-journal=no \
    --console=pipe --bind-ro="$work/share:/test" --bind="$work/out:/out" </dev/null >"$work/console" 2>&1 &
nspawn=$!
status=0
wait "$nspawn" || status=$?
nspawn=""

if [ -f "$work/out/log" ]; then
    cat "$work/out/log"
else
    echo "error: the container came to no test; its console:" >&2
    tail -n 40 "$work/console" >&2
    [ "$status" -ne 0 ] || status=1
fi
if [ "$status" -eq 0 ] && ! grep -q '^all steps passed$' "$work/out/log"; then
    echo "error: the container ended before the test did" >&2
    status=1
fi
if [ "$status" -eq 124 ]; then
    echo "error: the container did not end within 300 s" >&2
fi
exit "$status"
