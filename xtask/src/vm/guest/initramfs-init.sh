#!/bin/busybox sh
# The initramfs: finds the root disk and the payload disk and hands over to the init that the
# kernel's command line names with `holdfast.init=`, a path in the root.
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
# In the order in which the image's maker found that they depend on each other.
for module in /modules/*.ko; do
    /bin/busybox insmod "$module"
done
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in holdfast.init=*) init=${word#holdfast.init=} ;; esac
done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/opt/holdfast
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root "$init"
