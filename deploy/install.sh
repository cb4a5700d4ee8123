#!/bin/sh
# Everything a fresh Debian or Ubuntu machine needs, once: install.sh runtime | test | peers | peers-training
# Each failure is one line that says the command to run. A second run finds its stamp and leaves.
set -eu
cd "$(dirname "$0")/.."

what=${1:-runtime}
venv=.venv
runtime_lock=deploy/locks/runtime-cpu.txt
test_lock=deploy/locks/test.txt
need_mib=6000
peers= # their pins and ours conflict, so each has an environment of its own
case $what in
    peers) peers=yes venv=.venv-peers need_mib=2000 ;;
    peers-training) peers=yes venv=.venv-peers-training need_mib=3000 ;;
esac
log=$venv/install.log

fail() {
    echo "instructloop: $*" >&2
    exit 1
}

find_python() {
    for name in "${PYTHON:-}" python3.11 python3; do
        [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 || continue
        "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || continue
        echo "$name"
        return
    done
    fail "Python 3.11 is needed: run  apt-get install python3.11 python3.11-venv  (or set PYTHON=/path/to/python3.11)"
}

make_venv() {
    [ -x $venv/bin/python ] && return
    python=$(find_python)
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "$free" -ge $need_mib ] ||
        fail "$free MiB of disk are free here, $need_mib are needed: free some, or clone to a larger disk"
    "$python" -m venv $venv >/dev/null 2>&1 ||
        { rm -rf $venv; fail "the venv module is missing: run  apt-get install python3.11-venv"; }
}

pip_install() {
    $venv/bin/python -m pip install --quiet --no-deps --disable-pip-version-check "$@" >>$log 2>&1
}

explain_and_fail() {
    if grep -qiE "No space left" $log; then
        fail "the disk is full: free $need_mib MiB and run make again"
    elif grep -qiE "HASHES|hash" $log && grep -qi "torch" $log; then
        fail "this package index has no CPU build of torch 2.13.0: set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels and run make again"
    elif grep -qiE "connection|resolve|timed out|No matching distribution|Network" $log; then
        fail "packages cannot be fetched: connect this machine to a package index (PIP_INDEX_URL) and run make again; details: $log"
    fi
    fail "installing $1 failed: see $log, then run make again"
}

install_lock() {
    lock=$1
    stamp=$venv/.$(basename "$lock" .txt).sha256
    sum=$(cat "$lock" pyproject.toml | sha256sum)
    [ -n "$peers" ] && sum=$(sha256sum <"$lock") # they do not depend on our own project
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return
    echo "instructloop: installing $(grep -c '==' "$lock") exact packages of $lock (minutes, once) ..."
    : >$log
    pip_install --require-hashes -r "$lock" || explain_and_fail "$lock"
    [ -n "$peers" ] || pip_install --no-build-isolation -e . || explain_and_fail "instructloop"
    echo "$sum" >"$stamp"
}

install_tool() { # COMMAND PACKAGE: what the tests drive and Debian has
    command -v "$1" >/dev/null 2>&1 && return
    hint="$1 is needed for the tests: run  apt-get install $2  as root"
    [ "$(id -u)" = 0 ] || fail "$hint"
    echo "instructloop: installing $2 for the tests (once) ..."
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends "$2"; } >>$log 2>&1 ||
        fail "$hint (this attempt failed, see $log)"
}

make_venv
[ -n "$peers" ] && { install_lock "deploy/locks/$what.txt"; exit 0; }
install_lock $runtime_lock
[ "$what" = test ] && { install_lock $test_lock; install_tool chromium chromium; install_tool promtool prometheus; }
exit 0
