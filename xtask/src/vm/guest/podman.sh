#!/bin/sh
# podman with conmon and with Holdfast's monitor, under systemd and cgroup v2: each test of tests/tests/podman.rs by itself.
LIMIT=${LIMIT:-400}
. /opt/holdfast/guest/lib.sh

if [ $# -eq 0 ]; then
    open_results
    make_users holdfast-ranges
    load_criu_modules
    run_checks "$0" $(tests_of podman)
    exit
fi
case $1 in
    holdfast_as_user::*) one_test as_user holdfast-ranges test-podman --exact "$1" ;;
    *) one_test test-podman --exact "$1" ;;
esac
