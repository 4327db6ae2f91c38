#!/bin/sh
# Run a `swift` command on swift_bridge/, on Linux with Debian's Swift in a folder of its own:
#
#     scripts/swift_linux.sh test -j 1
#     scripts/swift_linux.sh run moddit-cli tokens "a red circle"
#
# Swift 6 on PATH is used as it is; on a Mac the package needs macOS 15, and its tests Xcode 16. Otherwise root on Debian
# gets one: a minimal Debian trixie with its package swiftlang, installed once (500 MB to download, 3.5 GB unpacked) in
# MODDIT_SWIFT_ROOT, by default a folder of the user's cache. The mirror is the machine's own. Nothing outside that folder
# changes, and nothing stays mounted: the mounts belong to this process alone, and go with it however it ends.
#
# Exit status: that of swift; 77, after one line that says why, where Swift cannot do it, or is not there and cannot be
# installed, or may not: MODDIT_SWIFT_INSTALL=0 uses only what is there.
set -eu
PATH=$PATH:/usr/sbin:/sbin # chroot, debootstrap

SUITE=trixie
PACKAGES="swiftlang swiftlang-dev libc6-dev libstdc++-14-dev"
NEEDED_MIB=4500
repository=$(cd "$(dirname "$0")/.." && pwd -P)
root=${MODDIT_SWIFT_ROOT:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/moddit/swift}
marker=$root/.moddit-installed # written last: a folder without it is half an installation
log=$root.log

skip() {
    echo "Swift is skipped: $*" >&2
    exit 77
}

has_swift() {
    command -v swift >/dev/null 2>&1 &&
        swift --version 2>/dev/null | grep -Eq 'Swift version ([6-9]|[1-9][0-9])\.'
}

# What a Mac needs for a command of swift. The Command Line Tools alone cannot build tests: they have no XCTest.
check_mac() {
    version=$(sw_vers -productVersion)
    [ "${version%%.*}" -ge 15 ] || skip "the package needs macOS 15 or newer; this is macOS $version"
    has_swift || skip "Swift 6 is not on PATH, or does not run; install Xcode 16 or newer"
    [ "$1" = test ] || return 0
    tools=$(xcode-select -p 2>/dev/null) || skip "no developer tools are chosen; the tests need Xcode 16 or newer"
    case $tools in
    *CommandLineTools*)
        skip "the Command Line Tools cannot build tests; install Xcode 16 or newer and choose it," \
            "sudo xcode-select -s /Applications/Xcode.app"
        ;;
    esac
}

# The checks that cost nothing, before anything is installed.
check_machine() {
    [ "$(uname -s)" = Linux ] || skip "Swift 6 is not on PATH; install it"
    [ "$(sed -n 's/^ID=//p' /etc/os-release 2>/dev/null)" = debian ] ||
        skip "Swift 6 is not on PATH, and only Debian can install it by itself"
    [ "$(id -u)" = 0 ] || skip "Swift 6 is not on PATH, and only root can install it by itself"
    unshare --mount true 2>/dev/null || skip "this container may not mount folders, which Swift in a folder needs"
}

# The mirror of the distribution in apt's configuration, whatever file and format that is in.
find_mirror() {
    # shellcheck disable=SC2016  # apt fills in the variables
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sort -u | head -n 1
}

install_swift() {
    free=$(df -Pm "$(dirname "$root")" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$NEEDED_MIB" ] ||
        skip "$root needs $NEEDED_MIB MiB, $free are free; set MODDIT_SWIFT_ROOT to a folder on a larger disk"
    remove_part
    echo "Installing Swift into $root (a few minutes, once; log in $log)" >&2
    if { unpack_system && add_swift; } >"$log" 2>&1; then
        touch "$marker"
    else
        skip "it could not be installed ($(tail -n 1 "$log")); the log is $log"
    fi
}

# What an interrupted installation left; never across a mount, never a folder that is something else.
remove_part() {
    [ -e "$root" ] || return 0
    [ -d "$root/debootstrap" ] || [ -e "$root/etc/debian_version" ] || [ -z "$(ls -A "$root")" ] ||
        skip "$root is not empty, and not an installation of Swift; set MODDIT_SWIFT_ROOT to another folder"
    rm -rf --one-file-system "$root"
}

# Here and below, && after each command: `set -e` has no effect in a function that is asked whether it succeeded.
unpack_system() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q || return
    command -v debootstrap >/dev/null 2>&1 || apt-get install -y -q --no-install-recommends debootstrap || return
    mirror=$(find_mirror)
    [ -n "$mirror" ] || { echo "apt's configuration names no mirror of Debian" && return 1; }
    nice unshare --mount debootstrap --variant=minbase "$SUITE" "$root" "$mirror"
}

add_swift() {
    # shellcheck disable=SC2086  # a list of packages
    in_system apt-get update -q &&
        in_system apt-get install -y -q --no-install-recommends $PACKAGES &&
        in_system apt-get clean
}

# Run a command in the installed system, in this folder, with the repository and /tmp under their own names.
in_system() {
    mkdir -p "$root/tmp" "$root$repository"
    # shellcheck disable=SC2016  # the inner shell fills in the variables
    MODDIT_ROOT=$root MODDIT_REPOSITORY=$repository nice unshare --mount --propagation private sh -euc '
        mount -t proc proc "$MODDIT_ROOT/proc"
        mount --rbind /dev "$MODDIT_ROOT/dev"
        mount --bind /tmp "$MODDIT_ROOT/tmp"
        mkdir -p "$MODDIT_ROOT$MODDIT_REPOSITORY" # once more, if the repository is in /tmp
        mount --bind "$MODDIT_REPOSITORY" "$MODDIT_ROOT$MODDIT_REPOSITORY"
        exec chroot "$MODDIT_ROOT" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            DEBIAN_FRONTEND=noninteractive "TERM=${TERM:-dumb}" sh -euc '\''cd "$1"; shift; exec "$@"'\'' sh \
            "$MODDIT_REPOSITORY/swift_bridge" "$@"
    ' sh "$@"
}

cd "$repository/swift_bridge"
[ "$(uname -s)" != Darwin ] || check_mac "$1"
if has_swift; then
    exec nice swift "$@"
fi
check_machine
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock" # a second run waits until the first has installed
flock 9
if [ ! -e "$marker" ]; then
    [ "${MODDIT_SWIFT_INSTALL:-1}" != 0 ] || skip "it is not installed; \`make swift-test\` does it"
    install_swift
fi
exec 9>&-
in_system swift "$@"
