#!/bin/sh
# Debian's containerd under unified cgroups, with its own shim (runc) and with Holdfast's (holdfast), as
# `ctr` has it. Each check is made with either.
. /opt/holdfast/guest/lib.sh

CHECKS='run metrics pause limits oom exec killed checkpoint'
IMAGE=localhost/busybox:latest
LOG=/run/containerd.log
# With /run, on which containerd's overlays cannot be. The machine's disk is not written to.
STORE=/tmp/containerd

start_containerd() {
    mkdir -p /etc/containerd $STORE
    printf 'version = 2\nroot = "%s"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' $STORE \
        > /etc/containerd/config.toml
    setsid containerd >> $LOG 2>&1 < /dev/null &
    soon 60 ctr version
}

# An image of busybox, in docker's form: a layer, a configuration, and what names both.
import_image() {
    dir=/tmp/image
    mkdir -p $dir/root/bin $dir/root/tmp
    cp /bin/busybox $dir/root/bin/busybox
    for name in sh cat echo sleep head tail true mkfifo mv; do ln -s busybox $dir/root/bin/$name; done
    tar -C $dir/root -cf $dir/layer.tar .
    sum=$(sha256sum < $dir/layer.tar | cut -d ' ' -f 1)
    printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$sum" > $dir/config.json
    printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' $IMAGE > $dir/manifest.json
    tar -C $dir -cf /tmp/image.tar manifest.json config.json layer.tar
    ctr image import --snapshotter native /tmp/image.tar
}

# ctr_run SHIM FLAG... -- ID ARG...
ctr_run() {
    runtime=io.containerd.$1.v2
    shift
    flags=
    while [ "$1" != -- ]; do
        flags="$flags $1"
        shift
    done
    shift
    id=$1
    shift
    ctr run --snapshotter native --runtime "$runtime" $flags $IMAGE "$id" "$@"
}

# begin SHIM ID: a container that stays.
begin() {
    ctr_run "$1" --detach -- "$2" sleep 100000
}

# end ID
end() {
    ctr task kill --signal KILL "$1"
    soon 30 stopped "$1"
    ctr task delete "$1" > /dev/null || true
    ctr container delete "$1"
}

state() {
    ctr task ls | sed -n "s/^$1  *[0-9]*  *//p"
}

stopped() {
    [ "$(state "$1")" = STOPPED ]
}

run() {
    is 'output' "$(ctr_run "$1" --rm -- run echo hi)" hi
    code=0
    ctr_run "$1" --rm -- run sh -c 'exit 7' || code=$?
    is 'status' $code 7
    code=0
    ctr_run "$1" --rm -- run sh -c 'kill -TERM $$; sleep 1' || code=$?
    is 'status after SIGTERM, which the first process ignores' $code 0
}

metrics() {
    begin "$1" metrics
    ctr task metrics metrics > /tmp/metrics
    is 'processes' "$(awk '$1 == "pids.current" { print $2 }' /tmp/metrics)" 1
    for name in memory.usage cpu.usage_usec; do
        found=$(awk -v name=$name '$1 == name { print $2 }' /tmp/metrics)
        [ "${found:-0}" -gt 0 ] || fail "$name is '$found'"
    done
    note "$(wc -l < /tmp/metrics) lines"
    end metrics
}

pause() {
    begin "$1" pause
    ctr task pause pause
    is 'state' "$(state pause)" PAUSED
    ctr task resume pause
    is 'state' "$(state pause)" RUNNING
    end pause
}

limits() {
    ctr_run "$1" --detach --memory-limit 67108864 -- limits sleep 100000
    pid=$(ctr task ls | awk '$1 == "limits" { print $2 }')
    dir=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
    is 'memory.max' "$(cat "$dir/memory.max")" 67108864
    end limits
}

oom() {
    ctr events > /tmp/events &
    listener=$!
    code=0
    ctr_run "$1" --rm --memory-limit 16777216 -- oom sh -c 'head -c 200000000 /dev/zero | tail; exit 3' || code=$?
    note "status $code"
    soon 20 grep -q tasks/oom /tmp/events
    kill $listener
}

exec_in() {
    begin "$1" exec
    code=0
    said=$(ctr task exec --exec-id more exec sh -c 'echo from exec; exit 5') || code=$?
    is 'status of an exec' $code 5
    is 'output of an exec' "$said" 'from exec'
    end exec
}

# The supervisor, and what watches the container, are killed: only Holdfast can be asked that.
killed() {
    [ "$1" = holdfast ] || skip 'containerd-shim-runc-v2 ends its container'
    begin holdfast killed
    # By the names that the kernel shows, of 15 characters.
    pkill -KILL -x holdfast-contai || fail 'there is no supervisor'
    pkill -KILL -x holdfast-shim || fail 'there is no shim'
    is 'state' "$(state killed)" RUNNING
    is 'output of an exec' "$(ctr task exec --exec-id more killed echo there)" there
    end killed
}

checkpoint() {
    load_criu_modules
    # With an input, our container has the FIFO itself, which CRIU does not take: see docs/containerd.md.
    # The file is replaced by a rename, so that a reader never finds it empty.
    ctr_run "$1" --detach --null-io -- frozen sh -c \
        'i=0; while :; do i=$((i+1)); echo $i > /tmp/next; mv /tmp/next /tmp/count; sleep 0.1; done'
    soon 30 counts_beyond frozen 3
    # ctr removes the log of CRIU with all else if that fails.
    while sleep 0.1; do cp /tmp/ctd-checkpoint*/criu.work/dump.log /tmp/dump.log 2> /dev/null || true; done &
    copying=$!
    code=0
    ctr container checkpoint --rw --image --task frozen localhost/checkpoint:one || code=$?
    kill $copying
    if [ $code != 0 ]; then
        tail -n 20 /tmp/dump.log
        fail "CRIU: $(grep Error /tmp/dump.log | head -n 1)"
    fi
    end frozen
    # With the runtime that the checkpoint names.
    ctr container restore --rw --live thawed localhost/checkpoint:one
    at=$(count thawed)
    [ "$at" -ge 3 ] || fail "it counts from $at"
    soon 30 counts_beyond thawed "$at"
    note "went on from $at"
    end thawed
    ctr image rm localhost/checkpoint:one
}

count() {
    ctr task exec --exec-id "count-$$-$(date +%N)" "$1" cat /tmp/count
}

counts_beyond() {
    [ "$(count "$1")" -gt "$2" ]
}

nothing_left() {
    is 'tasks' "$(ctr task ls -q)" ''
    is 'containers' "$(ctr container ls -q)" ''
    soon 30 no_process
    is 'mounts' "$(grep -c /run/containerd/io /proc/self/mountinfo)" 0
}

no_process() {
    ! pgrep -f 'containerd-shim|holdfast-shim --(dir|group)'
}

if [ $# -eq 0 ]; then
    open_results
    start_containerd > /tmp/start.log 2>&1 && import_image >> /tmp/start.log 2>&1 \
        || tell "FAIL containerd: $(tail -n 1 /tmp/start.log) $(tail -n 1 $LOG)"
    plan=
    for check in $CHECKS; do plan="$plan $check-runc $check-holdfast"; done
    run_checks "$0" $plan nothing-left
    tail -n 100 $LOG
    exit
fi
set -e
case $1 in
    exec-*) exec_in "${1#exec-}" ;;
    nothing-left) nothing_left ;;
    *-runc | *-holdfast) "${1%-*}" "${1##*-}" ;;
    *) fail "no check $1" ;;
esac
