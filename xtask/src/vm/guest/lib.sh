# What every part shares: the line to the host, and what the checks are made of. Sourced, not run.

export PATH=/opt/holdfast/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C
GUEST=/opt/holdfast/guest
# The second serial port; the first is the kernel's console.
RESULTS=/dev/ttyS1
# How long one check may take, in seconds. An emulated processor is some twenty times slower.
LIMIT=${LIMIT:-120}
# And one wait of a test.
export HOLDFAST_TEST_LIMIT=200

# One line for the host.
tell() {
    printf '%s\n' "$*" > "$RESULTS"
}

# Without this the line discipline would echo what the host says and change line ends.
open_results() {
    stty -F "$RESULTS" raw -echo 115200
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# is WHAT ACTUAL EXPECTED
is() {
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
}

# until SECONDS COMMAND...: for what nothing in the guest announces.
soon() {
    soon_left=$(($1 * 5))
    shift
    while ! "$@" > /dev/null 2>&1; do
        soon_left=$((soon_left - 1))
        [ "$soon_left" -gt 0 ] || fail "not in time: $*"
        sleep 0.2
    done
}

# run_checks FILE NAME...: runs each as a process of its own, with a deadline, and tells the host
# how it went. What it said goes to the console, from where the host shows it if it failed.
run_checks() {
    checks_file=$1
    shift
    tell "PLAN $*"
    for check in "$@"; do
        if timeout -k 5 "$LIMIT" sh "$checks_file" "$check" > /tmp/check.log 2>&1; then
            tell "PASS $check"
        else
            code=$?
            reason=$(grep '^FAILED: ' /tmp/check.log | tail -n 1)
            case $code in
                77) tell "SKIP $check: $(tail -n 1 /tmp/check.log)" ;;
                124) tell "FAIL $check: not done after $LIMIT s" ;;
                *) tell "FAIL $check: ${reason:-status $code: $(tail -n 1 /tmp/check.log)}" ;;
            esac
        fi
        grep '^NOTE: ' /tmp/check.log | while read -r line; do tell "NOTE $check: ${line#NOTE: }"; done
        echo "--- $check"
        cat /tmp/check.log
    done
    tell DONE
}

# asked NAME: what the kernel's command line has as `holdfast.NAME=VALUE`.
asked() {
    tr ' ' '\n' < /proc/cmdline | sed -n "s/^holdfast\.$1=//p"
}

# Those tests of `test-NAME` that the kernel's command line asks for: `holdfast.test=TEXT` is a part of the name.
tests_of() {
    "test-$1" --list 2> /dev/null | sed -n 's/: test$//p' | grep -F -- "$(asked test)"
}

# one_test COMMAND...: a test by itself. What it prints is shown if it fails; one that skips itself says so in a line.
one_test() {
    rm -f /tmp/skipped
    install -m 666 /dev/null /tmp/skipped
    HOLDFAST_TEST_SKIPPED=/tmp/skipped RUST_BACKTRACE=0 "$@" --test-threads 1 --nocapture 2>&1 \
        | cut -c 1-3000 > /tmp/test.log
    if [ -s /tmp/skipped ]; then
        skip "$(cut -f 2 /tmp/skipped)"
    fi
    cat /tmp/test.log
    grep -q '^test result: ok. 1 passed' /tmp/test.log \
        || fail "$(grep -A 1 'panicked at' /tmp/test.log | tail -n 1 | cut -c 1-300)"
}

# make_users NAME...: the users that the tests would make, with their systemd running without a login.
make_users() {
    for name in "$@"; do
        useradd --system --create-home --user-group --shell /bin/sh "$name"
        loginctl enable-linger "$name"
    done
    usermod --add-subuids 700000000-700065535 --add-subgids 700000000-700065535 holdfast-ranges
    for name in "$@"; do
        soon 120 test -S "/run/user/$(id -u "$name")/systemd/private" -a -S "/run/user/$(id -u "$name")/bus"
    done
}

# as_user NAME COMMAND...: in a scope of that user's systemd.
as_user() {
    user=$1
    shift
    setpriv --reuid "$user" --regid "$user" --init-groups -- env -i PATH="$PATH" HOME="/home/$user" \
        XDG_RUNTIME_DIR="/run/user/$(id -u "$user")" HOLDFAST_TEST_USER="$user" \
        HOLDFAST_TEST_SKIPPED=/tmp/skipped HOLDFAST_TEST_LIMIT=$HOLDFAST_TEST_LIMIT RUST_BACKTRACE=0 \
        systemd-run --user --scope --quiet --collect -- "$@"
}

# Ends a check that can't be made here.
skip() {
    echo "$*"
    exit 77
}

# Says something that the host's table shows and that is no failure.
note() {
    echo "NOTE: $*"
}

ROOT=${ROOT:-/run/holdfast}
SOCKET=$ROOT/holdfast.sock
DAEMON_LOG=/run/holdfast-daemon.log

hf() {
    holdfast --root "$ROOT" "$@"
}

# Starts the daemon and returns once it answers.
start_daemon() {
    setsid holdfast --root "$ROOT" daemon >> "$DAEMON_LOG" 2>&1 < /dev/null &
    soon 60 hf info
}

daemon_pid() {
    hf info --json | jq .pid
}

# Kills the daemon, and returns once it is gone.
kill_daemon() {
    victim=$(daemon_pid)
    kill -KILL "$victim"
    soon 20 gone "$victim"
}

gone() {
    ! kill -0 "$1"
}

# What there is of containers in the state root: theirs, and what runtimes keep of them.
files_left() {
    find "$ROOT" -mindepth 1 -maxdepth 1 -not -name .lock -not -name .runtime -not -name holdfast.sock
    find "$ROOT/.runtime" -mindepth 2 -maxdepth 2
}

pid_of() {
    hf inspect --json "$1" | jq .pid
}

# The pid of the shim of a container's first process.
shim_of() {
    pgrep -f "holdfast-shim --dir $ROOT/$1/init "
}

# A program that prints as it begins, and ends with what is written into its gate, past Holdfast.
GATED='mkfifo /tmp/gate; echo begins; read -r code < /tmp/gate; echo ends; exit $code'

# run_one ID RUNTIME: starts such a program, and returns once it has printed.
run_one() {
    hf run --detach --name "$1" --runtime "$2" --rootfs host -- sh -c "$GATED" > /dev/null
    soon 30 printed "$1" begins
}

# let_end PID STATUS: has it end. Its /tmp is its own, and reached through the process.
let_end() {
    timeout 30 sh -c "echo $2 > /proc/$1/root/tmp/gate" || fail "process $1 does not read from its gate"
}

printed() {
    hf logs "$1" | grep -q "^$2$"
}

# Waits for a container's end, going past the daemon: a shim that is gone has put the status on disk.
# The exit FIFO would announce it, but to open it once nobody holds it any more would wait for ever.
await_shim_end() {
    soon 30 no_shim "$1"
}

no_shim() {
    ! shim_of "$1"
}

status_of() {
    timeout 60 holdfast --root "$ROOT" wait --json "$1" | jq -c .status
}

# What CRIU needs of the kernel, where it is a module.
load_criu_modules() {
    for module in overlay nf_tables nfnetlink inet_diag tcp_diag udp_diag unix_diag af_packet_diag \
        netlink_diag tun veth; do
        modprobe $module || echo "no module $module"
    done
}
