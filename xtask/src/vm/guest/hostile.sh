#!/bin/sh
# Attacks from inside containers, under cgroup v2: each test of tests/tests/security.rs by itself.
. /opt/holdfast/guest/lib.sh
LIMIT=240

# Those that the kernel's command line asks for.
tests() {
    wanted=
    for word in $(cat /proc/cmdline); do
        case $word in holdfast.attack=*) wanted=${word#holdfast.attack=} ;; esac
    done
    security --list 2> /dev/null | sed -n 's/: test$//p' | grep -F -- "$wanted"
}

# attack NAME: what it prints is shown if it fails; a test that skips itself says so in a line.
attack() {
    HOLDFAST_TEST_SKIPPED=/tmp/skipped
    export HOLDFAST_TEST_SKIPPED RUST_BACKTRACE=0
    rm -f /tmp/skipped
    security --exact "$1" --test-threads 1 --nocapture 2>&1 | cut -c 1-3000 > /tmp/attack.log
    if [ -s /tmp/skipped ]; then
        skip "$(cut -f 2 /tmp/skipped)"
    fi
    cat /tmp/attack.log
    grep -q '^test result: ok. 1 passed' /tmp/attack.log \
        || fail "$(grep -A 1 'panicked at' /tmp/attack.log | tail -n 1 | cut -c 1-300)"
}

if [ $# -eq 0 ]; then
    open_results
    run_checks "$0" $(tests)
    exit
fi
attack "$1"
