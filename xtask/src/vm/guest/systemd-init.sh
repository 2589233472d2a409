#!/bin/sh
# Sets up what an installation would, and becomes systemd, which runs one part of the tests: see init.sh.
mount -t proc -o nosuid,noexec,nodev proc /proc
# Not here: what it exports is no business of pid 1's.
part=$(. /opt/holdfast/guest/lib.sh; asked part)
bin=/opt/holdfast/bin
mkdir -p /usr/local/bin
ln -sf $bin/holdfast $bin/holdfast-shim /usr/local/bin/
# Whether users have a systemd of their own there, and no daemon runs as root.
case $part in rootless | podman) users=y ;; *) users= ;; esac
units=/etc/systemd/system
cp /opt/holdfast/holdfast.service $units/
cat > $units/holdfast-vm.service <<UNIT
[Unit]
Description=Checks of Holdfast in a virtual machine
After=holdfast.service basic.target
[Service]
Type=oneshot
ExecStart=/opt/holdfast/guest/$part.sh
ExecStopPost=/bin/systemctl --force --force poweroff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
mkdir -p $units/multi-user.target.wants
[ "$users" ] || ln -sf ../holdfast.service $units/multi-user.target.wants/
ln -sf $units/multi-user.target $units/default.target
ln -sf ../holdfast-vm.service $units/multi-user.target.wants/
# Nobody logs in, no disk is searched for, nothing is fetched.
[ "$users" ] || ln -sf /dev/null $units/systemd-logind.service
for unit in getty.target serial-getty@ttyS0.service e2scrub_reap.service \
    systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    fstrim.timer e2scrub_all.timer systemd-tmpfiles-clean.timer systemd-firstboot.service; do
    ln -sf /dev/null $units/$unit
done
echo holdfast-vm > /etc/hostname
[ -s /etc/machine-id ] || echo 0123456789abcdef0123456789abcdef > /etc/machine-id
exec /sbin/init
