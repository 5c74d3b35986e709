#!/usr/bin/env bash
# .ci/docker.sh COMMAND...  runs a command beside a Docker Engine that holds the images of this checkout.
#
# From a bare Debian 12 machine of which you are root: installs Docker Engine, starts one, makes a base image from
# packages of the distribution (no image registry is needed), fills a wheelhouse, and builds all images from it
# without a network. Nothing is done twice: what an earlier run left is used as far as it is whole.
#
# The engine is a private one, with a socket, data and containers of its own and no network. An engine that runs on
# the machine is neither used nor touched, and this one ends with the command. All that stays is in GLASSWORKS_CI_CACHE.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
CACHE=${GLASSWORKS_CI_CACHE:-/var/tmp/glassworks-ci}
RUN=${GLASSWORKS_CI_RUN:-/run/glassworks-ci} # short: the path of a socket has at most 107 characters
BASE=glassworks-python-base:bookworm
PATH=$PATH:/usr/sbin:/sbin
unset DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_CONTEXT
export DOCKER_HOST=unix://$RUN/docker.sock

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

fail() {
    say "$1" >&2
    exit 1
}

retry() { # mirrors and indexes stumble; what fails three times is broken
    local pause
    for pause in 5 20 0; do
        "$@" && return
        sleep "$pause"
    done
    return 1
}

why_no_engine() { # prints what keeps an engine from running here, if anything does
    if [ "$(id -u)" != 0 ]; then
        echo "you are not root"
    elif ! unshare --mount true 2>/dev/null; then
        echo "this machine lets nobody mount anything"
    elif ! command -v dockerd >/dev/null && ! command -v apt-get >/dev/null; then
        echo "there is no dockerd, and no apt-get to install it with"
    fi
}

check_space() { # images, what builds them, wheels
    local need=10 free
    [ ! -e "$CACHE/complete" ] || need=3
    free=$(df --output=avail --block-size=1G "$CACHE" | tail -1)
    [ "$free" -ge "$need" ] || fail "$CACHE has $free GB free and needs $need: set GLASSWORKS_CI_CACHE to a larger disk"
}

install_engine() {
    local missing=() services=() service
    command -v dockerd >/dev/null || { missing+=(docker.io) && services+=(docker); }
    command -v docker-registry >/dev/null || { missing+=(docker-registry) && services+=(docker-registry); }
    command -v debootstrap >/dev/null || missing+=(debootstrap ca-certificates)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v faketime >/dev/null || missing+=(faketime)
    command -v chromium >/dev/null || missing+=(chromium)
    if [ ${#missing[@]} -gt 0 ]; then
        retry install_packages "${missing[@]}"
        for service in "${services[@]}"; do # where they start when they are installed, these are nobody's
            service "$service" stop || true
        done
    fi
    # Without control groups no container starts. The machine's init has mounted them, or nobody has.
    if ! mountpoint --quiet /sys/fs/cgroup; then
        retry install_packages cgroupfs-mount
        cgroupfs-mount
    fi
}

install_packages() { # with old lists first: they may do, and other people's sources may be slow to answer
    local get=(apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    DEBIAN_FRONTEND=noninteractive "${get[@]}" "$@" || {
        apt-get update -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 || true
        DEBIAN_FRONTEND=noninteractive "${get[@]}" "$@"
    }
}

start_engine() {
    local state
    stop_engine # one that a run left which was killed
    # A new folder each time: an engine that finds another one's pid files takes any process of that pid for it.
    rm -f "$RUN/dockerd.pid"
    state=$(mktemp --directory "$RUN/state-XXXXXX")
    setsid --fork dockerd --host "$DOCKER_HOST" --data-root "$CACHE/engine" --exec-root "$state" \
        --pidfile "$RUN/dockerd.pid" --bridge none --iptables=false --ip6tables=false \
        --containerd-namespace glassworks-ci --containerd-plugins-namespace glassworks-ci-plugins \
        >"$CACHE/dockerd.log" 2>&1 </dev/null 9>&-
    for _ in $(seq 60); do
        ! docker info >/dev/null 2>&1 || return 0
        sleep 1
    done
    docker info || true
    tail -20 "$CACHE/dockerd.log"
    return 1
}

stop_engine() {
    local pid
    pid=$(cat "$RUN/dockerd.pid" 2>/dev/null) || return 0
    grep --quiet --no-messages --fixed-strings -- "$CACHE/engine" "/proc/$pid/cmdline" || return 0
    kill "$pid"
    for _ in $(seq 100); do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.3
    done
    kill -KILL "$pid"
}

make_base_image() {
    ! docker image inspect "$BASE" >/dev/null 2>&1 || return 0
    retry unpack_base
    tar --directory "$CACHE/base" --create . | docker import - "$BASE"
    rm -rf "$CACHE/base"
}

unpack_base() { # in a mount namespace of its own: what debootstrap mounts is gone even when it is killed
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Label: Debian' 'Component: main' \
        'Created-By: Packages' | head -1)
    rm -rf "$CACHE/base"
    unshare --mount debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
        bookworm "$CACHE/base" ${mirror:+"$mirror"}
}

prepare_engine() {
    say "installing Docker Engine, if it is not there"
    install_engine
    say "starting an engine"
    start_engine
    say "making a base image, if there is none"
    make_base_image
    say "the engine is ready"
}

torch_build() { # what this machine's own processes run, so that containers compute alike
    $BIN/python -c 'from importlib.metadata import version; print("cpu" if "+cpu" in version("torch") else "cuda")'
}

fill_wheelhouse() { # pip keeps what is there under the right hash and fetches the rest
    local lock
    for lock in base data "torch-$TORCH" vector flow; do
        retry "$BIN/python" -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: \
            --python-version 3.11 --require-hashes --dest "$CACHE/wheels" --requirement "images/locks/$lock.txt"
    done
}

clean_up() {
    [ -z "${PREPARING:-}" ] || kill -- "-$PREPARING" 2>/dev/null || true
    stop_engine
    while umount "$CACHE/engine" 2>/dev/null; do :; done # one that was killed leaves its data mounted on itself
    rm -rf "$RUN"/state-* 2>/dev/null || true
}

[ $# -gt 0 ] || fail "no command: .ci/docker.sh make test-host"
WHY_NOT=$(why_no_engine)
if [ -n "$WHY_NOT" ]; then
    say "no Docker Engine of our own: $WHY_NOT. Tests that need one run where one answers, and are skipped elsewhere."
    unset DOCKER_HOST
    exec "$@"
fi

mkdir -p "$CACHE" "$RUN"
exec 9>"$CACHE/lock"
flock 9 # a second run waits for the first
check_space
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Packages of the distribution come while pip installs ours. In a process group of its own, to be ended as a whole.
set -m
(prepare_engine) >"$CACHE/prepare.log" 2>&1 9>&- </dev/null &
PREPARING=$!
set +m
say "installing Glassworks; Docker Engine and a base image beside it"
retry make .venv/.installed-test
wait "$PREPARING" || {
    tail -40 "$CACHE/prepare.log"
    fail "no Docker Engine with a base image; all of it is in $CACHE/prepare.log"
}
PREPARING=

TORCH=$(torch_build)
say "filling the wheelhouse"
fill_wheelhouse
say "building the images without a network"
$BIN/glassworks images build --torch "$TORCH" --base-image "$BASE" --wheelhouse "$CACHE/wheels"
say "what each image adds"
$BIN/glassworks images list --torch "$TORCH" --base-image "$BASE"
touch "$CACHE/complete"

say "$*"
GLASSWORKS_NEEDS_DOCKER=1 GLASSWORKS_MAY_KILL_DOCKER=1 "$@" 9>&-
