#!/bin/sh
# The checks on a machine whose init does nothing: containers under this kernel and its unified
# cgroups. Without an argument all of them in this order; with a name, that one.
. /opt/holdfast/guest/lib.sh

PLAN='kernel info status-runc status-crun not-found-runc not-found-crun signals-runc signals-crun daemon-killed-runc daemon-killed-crun shim-killed
shim-and-daemon-killed exec-runc exec-crun logs
status-holdfast-oci exec-holdfast-oci devices-runc devices-holdfast-oci own-cgroup-runc own-cgroup-holdfast-oci
nothing-left criu holdfast-checkpoint'

kernel() {
    case $(uname -r) in 6.1.*) ;; *) fail "kernel $(uname -r), not 6.1" ;; esac
    is 'file system of /sys/fs/cgroup' "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs
    grep -qw memory /sys/fs/cgroup/cgroup.controllers || fail 'no memory controller'
    note "$(uname -r), $(nproc) processors"
}

info() {
    is 'root' "$(hf info --json | jq -r .root)" "$ROOT"
    kill -0 "$(daemon_pid)"
    hf info
}

# foreground RUNTIME STATUS ARG...
foreground() {
    runtime=$1 expected=$2
    shift 2
    code=0
    hf run --rm --runtime "$runtime" --rootfs host -- "$@" || code=$?
    is "status of '$*' with $runtime" "$code" "$expected"
}

statuses() {
    foreground "$1" 0 true
    foreground "$1" 3 sh -c 'exit 3'
    foreground "$1" 255 sh -c 'exit 255'
    run_one "killed-$1" "$1"
    hf kill --signal KILL "killed-$1"
    is 'status after SIGKILL' "$(status_of "killed-$1")" '{"signal":9}'
    is 'status as a number' "$(hf wait "killed-$1")" 137
    hf delete "killed-$1"
}

not_found() {
    foreground "$1" 127 /no/such/program
    foreground "$1" 127 no-such-program
    foreground "$1" 126 /etc/passwd
}

# What the management does with signals must not reach the program: one that it inherits blocked it
# never gets.
signals() {
    mask=$(hf run --rm --runtime "$1" --rootfs host -- grep SigBlk /proc/self/status)
    is "blocked signals in a container of $1" "$mask" "$(printf 'SigBlk:\t0000000000000000')"
}

# Containers that end before, while and after the daemon is dead.
daemon_killed() {
    runtime=$1
    for id in before while0 while7 killed after; do run_one $id "$runtime"; done
    while0=$(pid_of while0) while7=$(pid_of while7) killed=$(pid_of killed) after=$(pid_of after)
    let_end "$(pid_of before)" 3
    await_shim_end before
    kill_daemon
    let_end "$while0" 0
    let_end "$while7" 7
    kill -KILL "$killed"
    for id in while0 while7 killed; do await_shim_end $id; done
    kill -0 "$after" || fail 'the container that should run on died with the daemon'
    start_daemon
    is 'number restored' "$(hf info --json | jq .restored)" 5
    is 'number of problems' "$(hf info --json | jq '.problems | length')" 0
    is 'pid after the restart' "$(pid_of after)" "$after"
    let_end "$after" 42
    for plan in before:3 while0:0 while7:7 after:42; do
        is "status of ${plan%:*}" "$(status_of "${plan%:*}")" "{\"code\":${plan#*:}}"
        is "output of ${plan%:*}" "$(hf logs "${plan%:*}" | tr '\n' ' ')" 'begins ends '
    done
    is 'status of killed' "$(status_of killed)" '{"signal":9}'
    hf delete before while0 while7 killed after
}

# This kernel tells nobody but the parent how a process ended, so the status may be lost with the
# shim; but then that is what must be said. 0 would be a lie, and so would be any other number.
honest() {
    status=$(status_of "$1")
    note "$1: status $status, evidence $(hf wait --json "$1" | jq -r .evidence)"
    case $status in
        "{\"code\":$2}") ;;
        '{"unknown":"'*'"}') ;;
        *) fail "status of $1 is '$status', neither $2 nor unknown" ;;
    esac
}

# exact ID STATUS
exact() {
    is "status of $1" "$(status_of "$1")" "{\"code\":$2}"
    note "$1: evidence $(hf wait --json "$1" | jq -r .evidence)"
}

shim_killed() {
    run_one orphan-7 runc
    run_one orphan-0 runc
    for id in orphan-7 orphan-0; do
        kill -KILL "$(shim_of $id)"
        kill -0 "$(pid_of $id)" || fail "$id died with its shim"
    done
    let_end "$(pid_of orphan-7)" 7
    let_end "$(pid_of orphan-0)" 0
    # The daemon is a subreaper: the orphans have become its children, and it knows.
    exact orphan-7 7
    exact orphan-0 0
    hf delete orphan-7 orphan-0
}

shim_and_daemon_killed() {
    run_one alone runc
    run_one runs-on runc
    alone=$(pid_of alone) runs_on=$(pid_of runs-on)
    shims="$(shim_of alone) $(shim_of runs-on)"
    kill_daemon
    kill -KILL $shims
    kill -0 "$alone" || fail 'the container died with its shim'
    let_end "$alone" 7
    soon 20 gone "$alone"
    start_daemon
    is 'status of what ended unwatched' "$(status_of alone)" '{"unknown":"exited-unwatched"}'
    is 'pid of what ran on' "$(pid_of runs-on)" "$runs_on"
    let_end "$runs_on" 9
    honest runs-on 9
    hf delete alone runs-on
}

exec_in() {
    run_one "exec-$1" "$1"
    code=0
    output=$(hf exec "exec-$1" sh -c 'echo from exec; exit 5') || code=$?
    is 'status of an exec' "$code" 5
    is 'output of an exec' "$output" 'from exec'
    let_end "$(pid_of "exec-$1")" 0
    is 'status of the container' "$(status_of "exec-$1")" '{"code":0}'
    hf delete "exec-$1"
}

# Says which of the devices that are its arguments, as c:1:3, it can open, or can't for another reason
# than that it may not.
OPENS='cd /dev
for device in "$@"; do
    mknod probe $(echo "$device" | tr : " ") || echo "$device not made"
    for how in "<" ">>" "<>"; do
        why=$( (eval "true $how probe") 2>&1 ) && why=opened
        case $why in *"not permitted") ;; *) echo "$device $how: $why" ;; esac
    done
    rm -f probe
done'

# Memory, the kernel's messages, a terminal of the machine, and all disks.
devices() {
    disks=$(for disk in /sys/dev/block/*; do echo "b:${disk##*/}"; done)
    [ -n "$disks" ] || fail 'there is no disk'
    # One word each.
    out=$(hf run --rm --runtime "$1" --rootfs host -- sh -c "$OPENS" sh c:1:1 c:1:11 c:4:0 b:7:0 $disks)
    is 'what could be opened' "$out" ''
    out=$(hf run --rm --runtime "$1" --rootfs host -- sh -c "$OPENS" sh c:1:3 c:1:9 | grep -c opened)
    is 'how often null and urandom could be opened' "$out" 6
    note "refused: $(echo c:1:1 c:1:11 c:4:0 b:7:0 $disks)"
}

# A cgroup of its own for the first process and for an exec; and no other is to be seen by whoever mounts
# the hierarchy.
own_cgroup() {
    id=own-$1
    run_one "$id" "$1"
    pid=$(pid_of "$id")
    path=$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
    case $path in /holdfast/"$id".*) ;; *) fail "cgroup of the container is $path" ;; esac
    hf exec "$id" sh -c 'sleep 1000; :' > /dev/null 2>&1 &
    # Two shells, and what the second one waits for.
    soon 30 sh -c "[ \$(wc -l < /sys/fs/cgroup$path/cgroup.procs) -ge 3 ]"
    mkdir /sys/fs/cgroup/victim
    sleep 1000 &
    victim=$!
    echo $victim > /sys/fs/cgroup/victim/cgroup.procs
    out=$(hf exec "$id" unshare -UCm --map-root-user sh -c 'mkdir /tmp/c
        mount -t cgroup2 none /tmp/c && echo mounted
        grep -x 0 /tmp/c/cgroup.procs
        cd /tmp/c/victim 2> /dev/null && echo seen && echo 1 > cgroup.kill' 2>&1) || true
    alive=$(kill -0 $victim && echo yes) || true
    kill $victim || true
    wait $victim || true
    soon 10 rmdir /sys/fs/cgroup/victim
    is 'what a container could do with its cgroup' "$out" mounted
    is 'whether a process of another cgroup is alive' "$alive" yes
    hf delete --force "$id"
    [ ! -e "/sys/fs/cgroup$path" ] || fail "left over: $path"
}

logs() {
    hf run --detach --name talker --rootfs host -- sh -c 'seq 1 20000; seq 1 500 >&2' > /dev/null
    is 'status' "$(status_of talker)" '{"code":0}'
    is 'output' "$(hf logs talker 2> /dev/null | cksum)" "$(seq 1 20000 | cksum)"
    is 'errors' "$(hf logs talker 2>&1 > /dev/null | cksum)" "$(seq 1 500 | cksum)"
    hf delete talker
}

# Last of Holdfast's own: all the above have deleted what they made.
nothing_left() {
    left=$(hf ps --all --json | jq -r '.[].id' | tr '\n' ' ')
    if [ -n "$left" ]; then
        note "a check that failed has left $left"
        hf delete --force $left
    fi
    daemon=$(daemon_pid)
    kill -TERM "$daemon"
    soon 30 gone "$daemon"
    is 'shims left' "$(pgrep -f holdfast-shim)" ''
    is 'processes of containers left' "$(pgrep -f 'mkfifo /tmp/gate')" ''
    is 'mounts left' "$(grep " $ROOT/" /proc/self/mounts)" ''
    is 'cgroups left' "$(find /sys/fs/cgroup/holdfast -mindepth 1 -type d)" ''
    is 'files left' "$(files_left)" ''
    start_daemon
}

# A bundle for runc by hand, in which a counter runs: what it prints tells whether it went on.
counter_bundle() {
    mkdir -p "$1/rootfs/bin" "$1/rootfs/tmp" "$1/rootfs/proc" "$1/rootfs/dev" "$1/rootfs/sys"
    cp /bin/busybox "$1/rootfs/bin/busybox"
    ln -sf busybox "$1/rootfs/bin/sh"
    (cd "$1" && runc spec)
    jq '.process.terminal = false | .root.readonly = false
        | .process.args = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; busybox sleep 0.2; done"]' \
        "$1/config.json" > "$1/config.new"
    mv "$1/config.new" "$1/config.json"
}

counted() {
    [ "$(cat "$1")" -gt "$2" ]
}

# By runc alone: that the machine can do it, whatever Holdfast makes of it.
criu() {
    load_criu_modules
    bundle=/tmp/criu
    counter_bundle $bundle
    runc run --detach --bundle $bundle by-hand > /dev/null 2>&1 < /dev/null
    soon 20 counted $bundle/rootfs/tmp/count 3
    runc checkpoint --image-path /tmp/criu-image --work-path /tmp/criu-work by-hand \
        || { tail -n 20 /tmp/criu-work/dump.log; fail 'runc checkpoint'; }
    at=$(cat $bundle/rootfs/tmp/count)
    runc restore --detach --bundle $bundle --image-path /tmp/criu-image --work-path /tmp/criu-work \
        by-hand > /dev/null 2>&1 < /dev/null \
        || { tail -n 20 /tmp/criu-work/restore.log; fail 'runc restore'; }
    soon 20 counted $bundle/rootfs/tmp/count "$at"
    note "went on from $at to $(cat $bundle/rootfs/tmp/count)"
    runc delete --force by-hand
}

# Out of one container into another, through Holdfast: the counter goes on, and its output comes.
holdfast_checkpoint() {
    load_criu_modules
    bundle=/tmp/holdfast-criu
    counter_bundle $bundle
    hf run --detach --name frozen --bundle $bundle > /dev/null
    soon 20 counted $bundle/rootfs/tmp/count 3
    hf checkpoint frozen --path /tmp/holdfast-criu-image
    at=$(cat $bundle/rootfs/tmp/count)
    # The checkpoint ended it.
    is 'status of the first' "$(status_of frozen)" '{"signal":9}'
    hf delete frozen
    hf run --detach --name thawed --bundle $bundle --checkpoint /tmp/holdfast-criu-image > /dev/null
    soon 20 counted $bundle/rootfs/tmp/count "$at"
    hf kill thawed
    is 'status' "$(status_of thawed)" '{"signal":9}'
    hf delete thawed
}

if [ $# -eq 0 ]; then
    open_results
    start_daemon > /tmp/start.log 2>&1 || tell "FAIL daemon: $(tail -n 1 $DAEMON_LOG)"
    run_checks "$0" $PLAN
    cat $DAEMON_LOG
    exit
fi
set -e
case $1 in
    kernel | info | logs | criu) "$1" ;;
    not-found-*) not_found "${1#not-found-}" ;;
    signals-*) signals "${1#signals-}" ;;
    status-*) statuses "${1#status-}" ;;
    daemon-killed-*) daemon_killed "${1#daemon-killed-}" ;;
    shim-killed) shim_killed ;;
    shim-and-daemon-killed) shim_and_daemon_killed ;;
    devices-*) devices "${1#devices-}" ;;
    own-cgroup-*) own_cgroup "${1#own-cgroup-}" ;;
    exec-*) exec_in "${1#exec-}" ;;
    nothing-left) nothing_left ;;
    holdfast-checkpoint) holdfast_checkpoint ;;
    *) fail "no check $1" ;;
esac
