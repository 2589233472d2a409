#!/bin/sh
# Pid 1 of a machine without systemd: the least that containers need, then one part of the tests.
# Which one, the kernel's command line says: `holdfast.part=NAME` runs NAME.sh.
#
# A shell that waits for its child reaps every orphan too, which is what a pid 1 must do.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C
mount -t proc -o nosuid,noexec,nodev proc /proc
mount -t sysfs -o nosuid,noexec,nodev sysfs /sys
mount -t cgroup2 -o nosuid,noexec,nodev,nsdelegate cgroup2 /sys/fs/cgroup
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t tmpfs -o nosuid,nodev tmpfs /tmp
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o nosuid,noexec,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
# For the containers below; with systemd this is systemd's work.
echo '+cpu +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
hostname holdfast-vm

# Not here: what it exports is no business of pid 1's.
part=$(. /opt/holdfast/guest/lib.sh; asked part)
sh "/opt/holdfast/guest/$part.sh"
echo "init: $part.sh ended with $?"
sync
# Without an init system to ask, the kernel is.
echo o > /proc/sysrq-trigger
sleep 60
