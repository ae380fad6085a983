# The lab's first process: lays out its world, says so, and waits for the
# holder's pipe to close. $0: the lab's name, $1: its folder.
set -eu
trap '' INT TERM HUP QUIT
exec 3<&0 </dev/null
# Still the host's /proc: the first field is our number out there.
read -r pid rest </proc/self/stat

mount -t proc proc /proc
# A sysfs shows the interfaces of the namespace that mounted it. The host's
# cgroups are carried over: Docker needs them, and they know no namespaces here.
mkdir "$1/cgroup"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --move "$1/cgroup" /sys/fs/cgroup
rmdir "$1/cgroup"
# Pins of its own, which end with the lab.
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true

mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/lock
[ -L /var/run ] || mount --bind /run /var/run
# Docker's images and containers live in memory and need no removal.
mkdir "$1/docker"
mount -t tmpfs -o mode=711 tmpfs "$1/docker"

hostname netobs-lab
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward

echo "ready $pid"
exec >/dev/null
# `wait` reaps orphans too, which a first process must.
cat <&3 &
wait $!
