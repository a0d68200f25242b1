#!/bin/sh
# Install the system packages that the tests use, through apt where it may; otherwise say what is
# missing and stop. No service is started: the tests start their own servers on ports of their own.
set -eu

# command -> Debian package
TOOLS='etcd:etcd-server
etcdctl:etcd-client
redis-server:redis-server
redis-sentinel:redis-sentinel
prometheus:prometheus
promtool:prometheus
prometheus-alertmanager:prometheus-alertmanager
amtool:prometheus-alertmanager
chromium:chromium
nft:nftables
ip:iproute2
faketime:faketime
strace:strace
psql:postgresql
mariadbd:mariadb-server-core
cc:build-essential'

PATH="$PATH:/usr/sbin:/sbin"

missing_tools() {
    for entry in $TOOLS; do
        command -v "${entry%%:*}" >/dev/null 2>&1 || echo "$entry"
    done
}

say() { echo "test setup: $*" >&2; }

missing=$(missing_tools)
[ -n "$missing" ] || exit 0
packages=$(echo "$missing" | sed 's/.*://' | sort -u | tr '\n' ' ')

refuse() {
    say "$1"
    say "missing: $(echo "$missing" | sed 's/:.*//' | tr '\n' ' ')"
    say "Debian or Ubuntu packages: $packages"
    exit 1
}

command -v apt-get >/dev/null 2>&1 || refuse "no apt-get here; install these with your package manager"
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    refuse "not root and no password-less sudo; ask somebody who may: apt-get install $packages"
fi

# A package's script asks policy-rc.d whether it may start its service: no.
policy=/usr/sbin/policy-rc.d
made_policy=""
clean_up() { [ -z "$made_policy" ] || $as_root rm -f "$policy"; }
trap clean_up EXIT INT TERM
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    made_policy=yes
    $as_root chmod 755 "$policy"
fi

install() {
    # shellcheck disable=SC2086 - a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
        --no-install-recommends -o DPkg::Lock::Timeout=300 $packages >&2
}

say "installing $packages"
$as_root apt-get update -q >&2 || say "apt-get update failed; trying with the lists there are"
install || refuse "apt-get install failed (see above)"

missing=$(missing_tools)
packages=$(echo "$missing" | sed 's/.*://' | sort -u | tr '\n' ' ')
[ -z "$missing" ] || refuse "still missing after the installation"
