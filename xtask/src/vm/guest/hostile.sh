#!/bin/sh
# Attacks from inside containers, under cgroup v2: each test of tests/tests/security.rs by itself.
. /opt/holdfast/guest/lib.sh
LIMIT=240

if [ $# -eq 0 ]; then
    open_results
    run_checks "$0" $(tests_of security)
    exit
fi
one_test test-security --exact "$1"
