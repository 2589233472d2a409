#!/bin/sh
# The checks on a machine with systemd: what dist/holdfast.service promises. Without an argument all
# of them in this order; with a name, that one.
# One check starts a unit and a container for each option of systemd's.
LIMIT=${LIMIT:-600}
. /opt/holdfast/guest/lib.sh

PLAN='enabled restart stop killed reload watchdog inherits as-pid-1 sandbox left-over socket package'

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

# said TEXT: the daemon's log has it.
said() {
    journalctl --no-pager --unit holdfast.service --since "$since" | grep -qF "$1"
}

# A reload ends when the file was read, and one that is wrong changes nothing.
reload() {
    mkdir -p /etc/holdfast
    echo 'log-level = "info"' > /etc/holdfast/config.toml
    systemctl restart holdfast.service
    up
    before=$(daemon_pid)
    since=$(date '+%Y-%m-%d %H:%M:%S')
    echo 'log-level = "debug"' > /etc/holdfast/config.toml
    systemctl reload holdfast.service
    soon 20 said 'configuration read again'
    echo 'no-such-key = 1' > /etc/holdfast/config.toml
    systemctl reload holdfast.service
    soon 20 said 'the configuration is wrong'
    soon 20 is_active
    is 'the daemon' "$(daemon_pid)" "$before"
    rm /etc/holdfast/config.toml
}

is_active() {
    [ "$(systemctl is-active holdfast.service)" = active ]
}

# A daemon that does not answer is replaced, and its containers run on.
watchdog() {
    across hang
}

hang() {
    kill -STOP "$before"
    let_end "$off" 5
    await_shim_end off
    soon 120 gone "$before"
}

# systemd listens: the first client starts the daemon, and none is refused while the daemon is restarted.
socket() {
    cp /opt/holdfast/holdfast.socket /etc/systemd/system/
    systemctl daemon-reload
    systemctl start holdfast.socket
    is 'the unit before the first client' "$(systemctl is-active holdfast.service)" inactive
    hf info > /dev/null
    is 'the unit' "$(systemctl is-active holdfast.service)" active
    run_one on runc
    on=$(pid_of on)
    rm -f /tmp/enough /tmp/refused
    while [ ! -e /tmp/enough ]; do hf ps --quiet > /dev/null || echo refused >> /tmp/refused; done &
    clients=$!
    for round in 1 2 3; do
        before=$(daemon_pid)
        systemctl restart holdfast.service
        [ "$before" != "$(daemon_pid)" ] || fail 'the daemon is the old one'
    done
    touch /tmp/enough
    wait "$clients"
    is 'clients refused' "$(cat /tmp/refused 2> /dev/null)" ''
    same_container on "$on"
    hf delete --force on
    systemctl stop holdfast.socket holdfast.service
    rm /etc/systemd/system/holdfast.socket
}

# The Debian package: installed, used, upgraded under a running container, removed, installed again, purged.
package() {
    rm -f /etc/systemd/system/holdfast.service /usr/local/bin/holdfast*
    systemctl daemon-reload
    dpkg --install /opt/holdfast/holdfast.deb
    up
    is 'the program' "$(readlink /proc/"$(main_pid)"/exe)" /usr/bin/holdfast
    is 'enabled' "$(systemctl is-enabled holdfast.service)" enabled
    run_one on runc
    on=$(pid_of on)
    before=$(daemon_pid)
    dpkg --install /opt/holdfast/holdfast.deb
    up
    [ "$before" != "$(daemon_pid)" ] || fail 'the daemon is the old one after an upgrade'
    same_container on "$on"
    dpkg --remove holdfast
    [ ! -e /usr/bin/holdfast ] || fail 'the program is still there'
    [ -e /etc/holdfast/config.toml ] || fail 'the configuration is gone'
    kill -0 "$on" || fail 'the removal has killed the container'
    dpkg --install /opt/holdfast/holdfast.deb
    up
    same_container on "$on"
    let_end "$on" 6
    is 'status of on' "$(status_of on)" '{"code":6}'
    hf delete on
    dpkg --purge holdfast
    [ ! -e /etc/holdfast/config.toml ] || fail 'the configuration is still there'
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

# Sandboxing options that docs/unit.md says must not be set, because containers inherit them.
NOT_SET='NoNewPrivileges=yes LockPersonality=yes MemoryDenyWriteExecute=yes RestrictRealtime=yes
RestrictSUIDSGID=yes RestrictNamespaces=yes RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native SystemCallFilter=~@clock ProtectClock=yes ProtectHostname=yes
ProtectKernelLogs=yes ProtectKernelModules=yes ProtectKernelTunables=yes ProtectControlGroups=yes
ProtectProc=invisible ProtectSystem=yes ProtectHome=yes PrivateTmp=yes PrivateDevices=yes
PrivateNetwork=yes PrivateIPC=yes PrivateUsers=yes PrivateMounts=yes
CapabilityBoundingSet=~CAP_SYS_TIME OOMScoreAdjust=-500'
# Those that the unit sets.
SET='KeyringMode=private UMask=0022'

# namespaces PID: those that a runtime, and with it a container that shares one, inherits.
namespaces() {
    for kind in mnt uts ipc net user; do readlink "/proc/$1/ns/$kind"; done
}

# Capabilities that some options take away.
CAPABILITIES='["CAP_SYS_TIME", "CAP_WAKE_ALARM", "CAP_SYSLOG", "CAP_SYS_MODULE", "CAP_MKNOD"]'

# probe [OPTION]: what a unit with this option has, and a container that it starts.
probe() {
    cat > /run/systemd/system/probe.service <<UNIT
[Unit]
StartLimitIntervalSec=0
[Service]
Type=oneshot
$1
ExecStart=/opt/holdfast/guest/systemd.sh in-unit
UNIT
    systemctl daemon-reload
    systemctl start probe.service > /dev/null 2>&1 || echo 'the unit fails'
    cat /run/probe/seen
    rm /run/probe/seen
}

# What the probe's unit does.
in_unit() {
    exec > /run/probe/seen 2>&1
    namespaces self
    runc --root /run/probe/runc run --bundle /run/probe probe < /dev/null
}

# The unit of the daemon hands nothing on to containers, and docs/unit.md has the options right.
sandbox() {
    # A container to which its configuration gives these capabilities, and which prints what it has.
    hf run --name probe --runtime runc --rootfs host -- true
    mkdir -p /run/probe
    jq --argjson all "$CAPABILITIES" --arg script \
        "grep -E '^(NoNewPrivs|Seccomp|CapBnd|Umask):' /proc/self/status; cat /proc/self/oom_score_adj" \
        '.process.args = ["sh", "-c", $script] | .process.noNewPrivileges = false
        | .process.capabilities.bounding = $all | .process.capabilities.permitted = $all
        | .process.capabilities.effective = $all | del(.linux.seccomp)' \
        "$(hf inspect --json probe | jq -r .bundle)/config.json" > /run/probe/config.json
    plain=$(probe '')
    expected=$(namespaces 1; printf 'Umask:\t0022\nCapBnd:\t0000000c0a010000\nNoNewPrivs:\t0\nSeccomp:\t0\n0\n')
    is 'a unit without options' "$plain" "$expected"
    for option in $SET; do
        is "$option" "$(probe "$option")" "$plain"
    done
    for option in $NOT_SET; do
        with=$(probe "$option")
        [ "$with" != "$plain" ] || fail "$option changes nothing"
        note "$option: $(printf '%s\n' "$with" | grep -vxF "$plain" | tr -s '\n\t' '  ' | cut -c 1-200)"
    done
    hf delete probe
}

# The daemon and a shim have what pid 1 has: the unit applies nothing to them that is inherited.
as_pid_1() {
    run_one inherits runc
    for process in "$(main_pid)" "$(shim_of inherits)"; do
        is "namespaces of $process" "$(namespaces "$process")" "$(namespaces 1)"
        has "$process" CapBnd "$(value 1 CapBnd)"
        has "$process" Seccomp 0
        has "$process" Umask 0022
    done
    has "$(main_pid)" NoNewPrivs 0
    # The shim sets it for itself, when it has started the runtime.
    has "$(shim_of inherits)" NoNewPrivs 1
    hf delete --force inherits
}

# value PID NAME: a line of its status.
value() {
    sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"
}

has() {
    is "$2 of process $1" "$(value "$1" "$2")" "$3"
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
    enabled | restart | stop | killed | reload | watchdog | inherits | sandbox | socket | package) "$1" ;;
    as-pid-1) as_pid_1 ;;
    left-over) left_over ;;
    in-unit) in_unit ;;
    *) fail "no check $1" ;;
esac
