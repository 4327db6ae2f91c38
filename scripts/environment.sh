#!/bin/sh
# Make .venv, or keep it if it is right:
#
#     sh scripts/environment.sh generate    what a picture takes: the extras mlx and convert
#     sh scripts/environment.sh setup       all of the development environment, and a fast BLAS for MLX on Linux
#
# The Python is PYTHON if it is set, else that of .venv, else the first of python3, python3.13, python3.12, python3.11
# that will do. A .venv of another Python or folder, of other pins (constraints.txt, pyproject.toml), or left by an
# installation that was interrupted is made anew, so that nothing old is in it. This file must run under the sh of any
# Mac, and what it asks Python under any Python: it is what tells an old one.
set -eu
cd "$(dirname "$0")/.."

WANTED="moddit needs Python 3.11, 3.12 or 3.13"
level=$1
venv=.venv
unset PYTHONHOME

fail() {
    echo "$*" >&2
    exit 1
}

# "3.12.1 arm64", or nothing where it does not run. A Mac's python3 is a program that offers to install the real one.
ask() {
    "$1" -c 'import platform, sys; print("%d.%d.%d" % sys.version_info[:3] + " " + platform.machine())' 2>/dev/null || :
}

# Why a Python will not do, in the words after "which"; nothing if it will.
objection() {
    case $1 in
    "") echo "does not run" ;;
    3.1[123].*) ;;
    *) echo "is Python ${1% *}" ;;
    esac
    [ "$(uname -s)" != Darwin ] || case $1 in
    3.1[123].*\ x86_64) echo "is built for Intel; MLX needs one for Apple Silicon (arm64)" ;;
    esac
}

check_system() {
    [ "$(uname -s)" = Darwin ] || return 0
    version=$(sw_vers -productVersion 2>/dev/null || :)
    major=${version%%.*}
    [ "${major:-14}" -ge 14 ] || fail "moddit needs macOS 14 or newer for MLX; this is macOS $version"
}

# Set python to the one to use.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        reason=$(objection "$(ask "$python")")
        [ -z "$reason" ] || fail "$WANTED; PYTHON=$python $reason. Name another: make PYTHON=python3.13"
        return
    fi
    python=$venv/bin/python
    [ -n "$(objection "$(ask "$python")")" ] || return 0
    for python in python3 python3.13 python3.12 python3.11; do
        [ -n "$(objection "$(ask "$python")")" ] || return 0
    done
    reason=$(objection "$(ask python3)")
    fail "$WANTED; python3 $reason, and no other is on PATH. Install one (https://www.python.org/downloads)," \
        "or name it: make PYTHON=/path/to/python3.13"
}

# What .venv must have been made of.
key() {
    echo "Python $(ask "$1"), pins $(cat constraints.txt pyproject.toml | cksum), in $(pwd -P)"
}

# An empty .venv. The Python of the old one goes with it, so that the one it was made with makes the new one.
make_venv() {
    if [ -e $venv ] || [ -h $venv ]; then
        echo "Making $venv anew: it is unfinished, or not of $key" >&2
    fi
    base=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)')
    rm -rf $venv
    "$base" -m venv $venv
}

install() {
    echo "Installing moddit[$1] into $venv (once)" >&2
    $venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$1]"
}

check_system
choose_python
key=$(key "$python")
is_made() { [ "$(cat "$venv/.$1-done" 2>/dev/null)" = "$key" ] && [ "$(key $venv/bin/python)" = "$key" ]; }

# All of it is more than what a picture takes.
if is_made "$level" || is_made setup; then
    exit 0
fi
is_made generate || make_venv
case $level in
generate) install mlx,convert ;;
setup)
    install mlx,convert,coreml,train,dev
    sh scripts/install_system.sh
    ;;
esac
$venv/bin/python scripts/fast_blas.py build
echo "$key" >"$venv/.$level-done" # last: without it, the installation was interrupted
