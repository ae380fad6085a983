# Stands outside the lab and waits for it to end, whoever ends it, then takes
# away what a namespace's end leaves behind: the folder and the cgroups.
# It ignores a terminal's signals: a lab ends when its holder's pipe closes.
# $1: the lab's folder, $2: what runs as the lab's first process.
trap '' INT TERM HUP QUIT
name=${1##*/}
setpriv --pdeathsig KILL -- \
    unshare --net --mount --pid --ipc --uts --fork --kill-child --propagation private -- \
    sh -c "$2" "$name" "$1"
status=$?
exec </dev/null
find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
rm -rf --one-file-system "$1"
exit "$status"
