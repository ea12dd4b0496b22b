#!/usr/bin/env bash
# Checks that every crate Muster is built from has a licence that deny.toml allows.
#
# Needs cargo only. `--list [CRATE]` prints name, version and licence of everything the named workspace member (default:
# all) is linked with, for the packages. Advisories are not looked at: their database is a git repository, which
# `cargo deny check advisories` fetches where the network allows it.
set -euo pipefail
cd "$(dirname "$0")/.."

crates() { # crates [cargo tree arguments]: "name vVersion<TAB>licence expression", once each
    cargo tree --locked --prefix none --no-dedupe --format $'{p}\t{l}' "$@" |
        sed -e 's/ (\*)$//' -e 's/ (proc-macro)//' -e 's/ ([^)]*)\t/\t/' | sed '/^$/d' | sort -u
}

if [ "${1-}" = --list ]; then
    if [ $# -gt 1 ]; then crates --edges normal --package "$2"; else crates --edges normal --workspace; fi
    exit
fi

# The strings of the list `allow` in [licenses].
mapfile -t allowed < <(sed -n '/^\[licenses\]/,/^\[advisories\]/p' deny.toml | sed -n 's/^ *"\(.*\)",$/\1/p')
if [ ${#allowed[@]} -eq 0 ]; then
    echo "error: no licence is allowed by deny.toml: its [licenses] allow list could not be read" >&2
    exit 1
fi

# permitted EXPRESSION: an SPDX expression as arithmetic, a licence being 1 if allowed; "/" is the old way to write OR.
permitted() {
    local expression=" ${1//\// OR } " sum="" word i
    expression=${expression//(/ ( }
    expression=${expression//)/ ) }
    expression=${expression// WITH /+WITH+}
    for word in $expression; do
        case $word in
            AND) sum+=" && " ;;
            OR) sum+=" || " ;;
            "(" | ")") sum+=" $word " ;;
            *)
                local yes=0
                for i in "${allowed[@]}"; do [ "${word//+/ }" = "$i" ] && yes=1; done
                sum+=$yes
                ;;
        esac
    done
    [ -n "$sum" ] && ((sum))
}

checked=0 refused=0
while IFS=$'\t' read -r crate licence; do
    checked=$((checked + 1))
    if ! permitted "$licence"; then
        echo "error: $crate has the licence \"${licence:-none stated}\", which deny.toml does not allow" >&2
        refused=$((refused + 1))
    fi
done < <(crates --workspace)

if [ "$checked" -lt 50 ]; then
    echo "error: only $checked crates were listed; cargo tree did not say what Muster is built from" >&2
    exit 1
fi
echo "licences: $checked crates, $refused refused"
[ "$refused" -eq 0 ]
