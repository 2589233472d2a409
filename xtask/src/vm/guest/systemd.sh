#!/bin/sh
# The checks on a machine with systemd: what dist/holdfast.service promises. Without an argument all
# of them in this order; with a name, that one.
. /opt/holdfast/guest/lib.sh

PLAN='enabled restart stop killed inherits left-over'

# The unit starts the daemon before it listens.
up() {
    soon 60 hf info
}

main_pid() {
    systemctl show --property MainPID --value holdfast.service
}

enabled() {
    up
    is 'the unit' "$(systemctl is-active holdfast.service)" active
    is 'main process' "$(main_pid)" "$(daemon_pid)"
    note "$(systemctl --version | head -n 1); booted in $(cut -d ' ' -f 1 /proc/uptime) s"
    note "failed units: $(systemctl list-units --failed --no-legend --plain | cut -d ' ' -f 1 | tr '\n' ' ')"
}

# same_container ID PID: it is known as before, and alive.
same_container() {
    is "pid of $1" "$(pid_of "$1")" "$2"
    kill -0 "$2" || fail "$1 is dead"
    is "restored $1" "$(hf ps --json | jq -r ".[] | select(.id == \"$1\") | .restored")" true
}

# across COMMAND...: what the unit's daemon undergoes, with a container that runs on, one that ends
# meanwhile, and an exec that runs on.
across() {
    run_one on runc
    run_one off runc
    on=$(pid_of on) off=$(pid_of off)
    hf exec --detach on sleep 1000 > /dev/null
    before=$(daemon_pid)
    "$@"
    up
    after=$(daemon_pid)
    [ "$before" != "$after" ] || fail 'the daemon is the old one'
    same_container on "$on"
    pgrep -f '^sleep 1000$' > /dev/null || fail 'the exec is dead'
    is 'status of off' "$(status_of off)" '{"code":5}'
    is 'output of off' "$(hf logs off | tr '\n' ' ')" 'begins ends '
    let_end "$on" 6
    is 'status of on' "$(status_of on)" '{"code":6}'
    hf delete on off
}

restart() {
    across do_restart
}

do_restart() {
    systemctl restart holdfast.service
    let_end "$off" 5
    await_shim_end off
}

stop() {
    across do_stop
}

do_stop() {
    systemctl stop holdfast.service
    soon 20 gone "$before"
    kill -0 "$on" || fail 'a stop of the unit has killed the container'
    shim_of on > /dev/null || fail 'a stop of the unit has killed the shim'
    let_end "$off" 5
    await_shim_end off
    systemctl start holdfast.service
}

killed() {
    across do_kill
}

# systemd starts it again by itself.
do_kill() {
    systemctl kill --signal KILL --kill-who main holdfast.service
    soon 20 gone "$before"
    let_end "$off" 5
    await_shim_end off
}

# What the unit sets for the daemon is no business of the containers'.
inherits() {
    run() { hf run --rm --rootfs host -- "$@"; }
    is 'oom_score_adj in a container' "$(run cat /proc/self/oom_score_adj)" 0
    is 'soft limit of open files in a container' "$(run sh -c 'ulimit -Sn')" 1024
    case $(run cat /proc/self/environ | tr '\0' '\n') in
        *INVOCATION_ID*) fail 'the environment of the unit is in a container' ;;
    esac
}

left_over() {
    left=$(hf ps --all --json | jq -r '.[].id' | tr '\n' ' ')
    [ -z "$left" ] || hf delete --force $left
    # The one that waits for work is no container's.
    spare=$(pgrep -f 'holdfast-shim --spare')
    is 'shims left' "$(pgrep -f holdfast-shim | grep -vxF "$spare")" ''
    is 'processes in the unit' \
        "$(grep -vxF "$spare" /sys/fs/cgroup/system.slice/holdfast.service/cgroup.procs)" "$(main_pid)"
    systemctl stop holdfast.service
    is 'the unit' "$(systemctl is-failed holdfast.service)" inactive
}

if [ $# -eq 0 ]; then
    open_results
    run_checks "$0" $PLAN
    journalctl --no-pager --unit holdfast.service | tail -n 40
    exit
fi
set -e
case $1 in
    enabled | restart | stop | killed | inherits) "$1" ;;
    left-over) left_over ;;
    *) fail "no check $1" ;;
esac
