#!/bin/sh
# Users without root's rights, each with a systemd of its own: each test of tests/tests/rootless.rs by itself, those
# attacks of tests/tests/security.rs that are made by such a user, and what the daemon does that is started after a login.
LIMIT=${LIMIT:-400}
. /opt/holdfast/guest/lib.sh

# After a login, the daemon leaves the session, and its containers have cgroups.
login() {
    su --login holdfast-ranges --command 'cat /proc/self/cgroup; exec setsid holdfast daemon' > /tmp/login 2>&1 < /dev/null &
    soon 60 answers
    grep -q '/session-' /tmp/login || fail "no session: $(head -n 1 /tmp/login)"
    note "$(as_them holdfast info | grep -A 2 '^rootless' | tr -s ' \n' ' ')"
    as_them holdfast run --detach --name limited --memory 32m --rootfs host -- sleep 1000
    pid=$(as_them holdfast inspect --format '{{.pid}}' limited)
    is 'the memory limit' "$(cat "/sys/fs/cgroup/$(cut -d : -f 3 "/proc/$pid/cgroup")/memory.max")" 33554432
    as_them holdfast rm --force limited
    # systemd removes the cgroup, and with it the count, when the last process has ended.
    counted=0
    for number in 1 2 3 4 5; do
        as_them holdfast run --name "oom$number" --memory 16m --rootfs host -- tail /dev/zero > /dev/null 2>&1 || true
        [ "$(as_them holdfast inspect --format '{{.oomKilled}}' "oom$number")" = false ] || counted=$((counted + 1))
    done
    note "of 5 containers whose first process ran out of memory, it is known of $counted"
    as_them pkill -TERM -x holdfast
}

as_them() {
    as_user holdfast-ranges "$@"
}

answers() {
    as_them holdfast info
}

if [ $# -eq 0 ]; then
    open_results
    make_users holdfast-ranges holdfast-one-id
    run_checks "$0" login $(tests_of rootless) $(tests_of security | grep '^without_root::')
    exit
fi
case $1 in
    login) set -e; login ;;
    with_ranges::*) one_test as_user holdfast-ranges test-rootless --exact "$1" ;;
    without_root::*) one_test as_user holdfast-ranges test-security --exact "$1" ;;
    with_one_id::*) one_test as_user holdfast-one-id test-rootless --exact "$1" ;;
    # As root, who becomes the user.
    *) one_test test-rootless --exact "$1" ;;
esac
