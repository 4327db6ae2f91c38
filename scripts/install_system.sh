#!/bin/sh
# OpenBLAS and gcc for a fast BLAS under MLX on Linux, and the font that recipes/emoji64 draws: installed where they are
# missing and this may install them, that is as root on Debian or Ubuntu. Never fails: without them MLX works, slowly, and
# tests that need the font are skipped.
[ "$(uname -s)" = Linux ] || exit 0
PATH=$PATH:/usr/sbin:/sbin # ldconfig
missing=
ldconfig -p 2>/dev/null | grep -q 'libopenblas\.so\.0' || missing="libopenblas0-pthread"
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || missing="${missing:+$missing }fonts-noto-color-emoji"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "For a fast MLX and all tests, install: $missing" >&2
    exit 0
fi
echo "Installing $missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of packages
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/dev/null; then
    echo "Could not install $missing; MLX may be slow, and tests of recipes/emoji64 be skipped" >&2
fi
