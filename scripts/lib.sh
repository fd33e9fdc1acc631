# What scripts/demo, scripts/test and scripts/check share: the set-up of a fresh machine. Asks for nothing.
# Sourced by them, from anywhere; leaves the caller in the folder of the checkout.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
export LC_ALL=C.UTF-8
# Debian keeps daemons such as mosquitto where only root looks for them.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

VENV=.venv

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$(basename "$0"): $*"
    exit 1
}
usage() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
    exit "${1:-0}"
}

# Debian packages, without a question. Fails, and says why, where this user may not install anything.
apt_install() { # PACKAGE...
    command -v apt-get >/dev/null || {
        say "cannot install $*: no apt-get on this machine"
        return 1
    }
    local as=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null </dev/null || {
            say "cannot install $*: not root, and no sudo without a password"
            return 1
        }
        as=(sudo -n)
    fi
    say "installing $* with apt-get"
    local log
    log=$(mktemp)
    local apt=("${as[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l
        apt-get -q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
    # The lists of a fresh machine are often empty or old: asked for again only when they do not do.
    if "${apt[@]}" install --no-install-recommends "$@" </dev/null >"$log" 2>&1 ||
        { "${apt[@]}" update </dev/null >>"$log" 2>&1 &&
            "${apt[@]}" install --no-install-recommends "$@" </dev/null >>"$log" 2>&1; }; then
        rm -f "$log"
        return 0
    fi
    tail -n 15 "$log" >&2
    rm -f "$log"
    say "cannot install $*: apt-get failed, see above"
    return 1
}

# The name of a Python that is new enough, on stdout.
find_python() {
    local python
    for python in "${PYTHON:-python3}" python3.11 python3.12 python3.13 python3.14; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$python"
            return 0
        fi
    done
    return 1
}

# .venv in the checkout, with exactly what requirements/NAME.txt pins. Quick when nothing has changed.
ensure_venv() { # demo | develop
    local lock=requirements/$1.txt python stamp
    python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } ||
        die "needs Python 3.11 or newer as python3, or named by \$PYTHON. As administrator: apt-get install python3-venv. Then run this again."

    # Made again when its interpreter is gone, or is another one.
    local wanted
    wanted=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
    if [ "$("$VENV/bin/python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null)" != "$wanted" ] ||
        ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        say "making $VENV with $("$python" --version)"
        rm -rf "$VENV"
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            apt_install python3-venv ||
                die "this Python has no venv module. As administrator: apt-get install python3-venv. Then run this again."
        fi
        "$python" -m venv "$VENV" </dev/null
    fi

    # develop.txt contains all of demo.txt.
    stamp=$(sha256sum requirements/demo.txt requirements/develop.txt pyproject.toml | sha256sum | cut -c 1-16)
    if [ -e "$VENV/.has-develop-$stamp" ] || [ -e "$VENV/.has-$1-$stamp" ]; then return 0; fi
    say "installing the libraries of $lock into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --require-hashes --only-binary :all: -r "$lock" </dev/null ||
        die "pip could not install $lock: is the network there?"
    local talk
    talk=$("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --no-deps --no-build-isolation --no-index --editable . 2>&1 </dev/null) ||
        die "pip could not put this checkout into $VENV: $talk"
    rm -f "$VENV"/.has-*
    touch "$VENV/.has-$1-$stamp"
}

# A C compiler, for the tests that watch the disk of a running gateway.
ensure_compiler() {
    command -v cc >/dev/null || apt_install gcc libc6-dev ||
        say "without a C compiler the tests of power cuts and failing disks cannot run; they are named at the end"
}

# libfaketime, for the tests of a machine whose clock is wrong.
ensure_faketime() {
    command -v faketime >/dev/null || apt_install faketime ||
        say "without faketime the tests of a wrong clock cannot run; they are named at the end"
}

# Mosquitto, for the tests. The package would also start a broker at every boot: nobody has asked for that.
ensure_mosquitto() {
    command -v mosquitto >/dev/null && return 0
    apt_install mosquitto || {
        say "without mosquitto the tests with a real broker cannot run; they are named at the end"
        return 0
    }
    if [ -d /run/systemd/system ]; then
        local as=()
        [ "$(id -u)" = 0 ] || as=(sudo -n)
        "${as[@]}" systemctl disable --quiet --now mosquitto.service </dev/null || true
    fi
}
