#!/bin/sh
# The load whose power is cut. Its state root is on a disk that outlives the machine.
#
# First it tells what there is after the last cut, a line each:
#   STARTING, then PROBLEM TEXT, HAS {container}, LISTED, BAD ID REASON, and READY.
# Then it works until the power goes:
#   TRY create ID STATUS     ACK create ID     the container is there
#   TRY exit ID              ACK exit ID       it has ended, with STATUS
#   TRY delete ID            ACK delete ID     it is gone
#   EVENT {event}                              the journal has this, from its beginning at each boot
# TRY stands before the command, ACK after it has returned: what lies between is neither certain to
# be on disk nor certain not to be. With `holdfast.last` it ends in order instead: LEFT PATH for all
# that is left when every container is deleted, and DONE.
ROOT=/var/lib/holdfast/root
. /opt/holdfast/guest/lib.sh

for word in $(cat /proc/cmdline); do
    case $word in
        holdfast.boot=*) BOOT=${word#*=} ;;
        holdfast.seed=*) SEED=${word#*=} ;;
        holdfast.last) LAST=1 ;;
        holdfast.runtime=fake) RUNTIME=/opt/holdfast/bin/fake-runtime ;;
        holdfast.runtime=*) RUNTIME=${word#*=} ;;
    esac
done

# Kept open: every close of a serial line waits until it has sent all.
open_results
exec 3> "$RESULTS"
tell() {
    printf '%s\n' "$*" >&3
}

# The next of a worker's random numbers, in $random, from 0 to $1 - 1.
draw() {
    state=$(((state * 1103515245 + 12345) % 2147483648))
    random=$((state / 65536 % $1))
}

delete() {
    tell "TRY delete $1"
    if refused=$(hf delete --force "$1" 2>&1); then
        tell "ACK delete $1"
    else
        tell "BAD $1 cannot be deleted: $(echo "$refused" | tr '\n' ' ')"
    fi
}

# One container after the other: some end, some run on, some are never started.
worker() {
    state=$((SEED * 31 + BOOT * 7 + $1))
    number=0
    while :; do
        number=$((number + 1))
        id=b$BOOT-w$1-$number
        draw 200
        status=$random
        draw 10
        kind=$random
        tell "TRY create $id $status"
        case $kind in
            0) hf create --name "$id" --runtime "$RUNTIME" --rootfs host -- sh -c "exit $status" ;;
            1) hf run -d --name "$id" --runtime "$RUNTIME" --rootfs host -- sleep 1000 ;;
            *) hf run -d --name "$id" --runtime "$RUNTIME" --rootfs host -- sh -c "exit $status" ;;
        esac > /dev/null || { tell "BAD $id cannot be made"; continue; }
        tell "ACK create $id"
        if [ "$kind" -ge 2 ]; then
            tell "TRY exit $id"
            said=$(hf wait "$id")
            [ "$said" = "$status" ] || tell "BAD $id status $said while it ran, not $status"
            tell "ACK exit $id"
        fi
        draw 2
        [ "$random" -eq 0 ] || delete "$id"
    done
}

tell "KERNEL $(uname -r)"
tell STARTING
mkdir -p /var/lib/holdfast
mount -t ext4 /dev/vdc /var/lib/holdfast || { tell 'FAIL the disk cannot be mounted'; exit; }
setsid holdfast --root "$ROOT" daemon >> "$DAEMON_LOG" 2>&1 < /dev/null 3>&- &
(soon 60 hf info) || { tell "FAIL the daemon does not start: $(tail -n 3 $DAEMON_LOG | tr '\n' ' ')"; exit; }
hf info --json | jq -r '.problems[] | "\(.path): \(.reason)"' | while read -r problem; do
    tell "PROBLEM $problem"
done
hf ps --all --json | jq -c '.[]' | while read -r container; do tell "HAS $container"; done
tell LISTED
ids=$(hf ps --all --json | jq -r '.[].id')
for id in $ids; do
    hf logs "$id" > /dev/null 2>&1 || tell "BAD $id its output cannot be read"
done
# What is old makes room, a few apart, which must be there after the next cut, too.
kept=0
for id in $ids; do
    kept=$((kept + 1))
    [ "$kept" -le 5 ] && [ -z "$LAST" ] && continue
    delete "$id"
done
tell READY
if [ -n "$LAST" ]; then
    # All that is kept, up to the last event that there is.
    hf run --name marker --rm --runtime "$RUNTIME" --rootfs host -- true
    hf events --replay --json | while read -r event; do
        tell "EVENT $event"
        case $event in *'"container":"marker"'*'"event":"deleted"'*) break ;; esac
    done
    files_left | while read -r path; do tell "LEFT ${path#"$ROOT"/}"; done
    cat $DAEMON_LOG
    tell DONE
    exit
fi
hf events --replay --json 3>&- | while read -r event; do tell "EVENT $event"; done &
# With others at work, their syncs write out one's unsynced changes, too: so now many, now one alone.
for worker in $(seq $((1 + (SEED + BOOT) % 3))); do
    worker "$worker" &
done
wait
