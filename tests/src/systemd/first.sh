# Becomes systemd, as the first process of a pid namespace inside a lab. What it may not
# find or change of the machine's is covered in its own mount namespace.
# $1: its folder, $2: its cgroup's name, $3: netobs
set -eu
mount -t proc proc /proc
# As on a host: what is mounted later is seen by services too.
mount --make-rshared /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$2"
echo 0 >"/sys/fs/cgroup/$2/cgroup.procs"
mount -t tmpfs tmpfs /usr/local/bin
cp "$3" /usr/local/bin/netobs
mount -t tmpfs tmpfs /etc/default
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin "SYSTEMD_UNIT_PATH=$1/units" \
    /lib/systemd/systemd --system --unit=lab.target --log-target=console
