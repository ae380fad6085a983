# Installs packages without starting the services in them: netobs starts its
# own dockerd in a lab, and a machine's owner decides about another.
# Runs as root; the arguments are packages.
set -eu
policy=/usr/sbin/policy-rc.d
saved=$policy.netobs
services='docker* | containerd* | prometheus* | nftables | pmacct* | nfacctd | sfacctd | uacctd | softflowd*'

restore() {
    rm -f "$policy"
    [ ! -e "$saved" ] || mv "$saved" "$policy"
}
trap restore EXIT
trap 'exit 130' INT TERM HUP

# What ended badly before is put back first.
[ ! -e "$saved" ] || mv "$saved" "$policy"
[ ! -e "$policy" ] || mv "$policy" "$saved"
cat >"$policy" <<POLICY
#!/bin/sh
# Temporary, of netobs's set-up.
case "\$1" in
$services) exit 101 ;;
esac
[ ! -x "$saved" ] || exec "$saved" "\$@"
exit 0
POLICY
chmod 755 "$policy"

DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null

# On a systemd host the packages are enabled for the next boot.
if [ -d /run/systemd/system ]; then
    for package in "$@"; do
        case $package in
        docker.io) systemctl disable docker.service docker.socket containerd.service || true ;;
        prometheus | prometheus-node-exporter) systemctl disable "$package.service" || true ;;
        pmacct) systemctl disable pmacctd.service nfacctd.service sfacctd.service || true ;;
        softflowd) systemctl disable softflowd.service || true ;;
        esac
    done
fi
