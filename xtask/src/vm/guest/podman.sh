#!/bin/sh
# podman with conmon and with Holdfast's monitor, under systemd and cgroup v2: each test of tests/tests/podman.rs by itself.
LIMIT=${LIMIT:-400}
. /opt/holdfast/guest/lib.sh

USER_NAME=holdfast-ranges

# The user that the tests would make, with a systemd of its own, and what CRIU needs.
prepare() {
    useradd --system --create-home --user-group --shell /bin/sh $USER_NAME
    loginctl enable-linger $USER_NAME
    usermod --add-subuids 700000000-700065535 --add-subgids 700000000-700065535 $USER_NAME
    runtime_dir=/run/user/$(id -u $USER_NAME)
    soon 120 test -S "$runtime_dir/systemd/private" -a -S "$runtime_dir/bus"
    load_criu_modules
}

as_user() {
    setpriv --reuid $USER_NAME --regid $USER_NAME --init-groups -- env -i PATH="$PATH" HOME=/home/$USER_NAME \
        XDG_RUNTIME_DIR="/run/user/$(id -u $USER_NAME)" HOLDFAST_TEST_USER=$USER_NAME \
        HOLDFAST_TEST_SKIPPED=/tmp/skipped HOLDFAST_TEST_LIMIT=$HOLDFAST_TEST_LIMIT RUST_BACKTRACE=0 \
        systemd-run --user --scope --quiet --collect -- "$@"
}

if [ $# -eq 0 ]; then
    open_results
    prepare
    run_checks "$0" $(tests_of podman)
    exit
fi
case $1 in
    holdfast_as_user::*) one_test as_user test-podman --exact "$1" ;;
    *) one_test test-podman --exact "$1" ;;
esac
