# Sourced by the cases: they run inside the guest, in the mount ($KC_MNT), as root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
CASES=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

say() { echo "[$(cut -d. -f1 /proc/uptime)s] $*"; }
die() { echo "FAILED: $*" >&2; exit 1; }

# Unmounts and mounts again: nothing of the client's cache is left.
remount() {
    cd /
    local fstype dev target opts
    read -r fstype dev target opts </run/kc/mounts0
    umount "$KC_MNT"
    echo 3 >/proc/sys/vm/drop_caches
    mount -t "$fstype" -o "$opts" "$dev" "$target"
    cd "$KC_MNT"
}

# Every file of the tree below $1 has the checksum that $2 (sha256sum's format) says.
same_sums() {
    (cd "$1" && sha256sum --quiet --check "$2") || die "checksums of $1 differ $3"
    say "checksums match $3"
}
