#!/usr/bin/env bash
# From a bare Debian machine to a tiny build with every stage in its own container: installs Docker Engine, makes a
# base image from packages of the distribution (no image registry is needed), fills a wheelhouse, builds all images
# from it without a network, and runs the tests that need them. Wants root.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
CACHE=${GLASSWORKS_CI_CACHE:-/var/tmp/glassworks-ci}
BASE=glassworks-python-base:bookworm
mkdir -p "$CACHE"

command -v dockerd >/dev/null && command -v debootstrap >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends docker.io debootstrap tini

if ! docker info >/dev/null 2>&1; then
    setsid dockerd >"$CACHE/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 60); do
        docker info >/dev/null 2>&1 && break
        sleep 1
    done
    docker info >/dev/null || { tail -20 "$CACHE/dockerd.log"; exit 1; }
fi

if ! docker image inspect "$BASE" >/dev/null 2>&1; then
    rm -rf "$CACHE/base"
    debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
        bookworm "$CACHE/base" >"$CACHE/debootstrap.log"
    tar -C "$CACHE/base" -c . | docker import - "$BASE"
    rm -rf "$CACHE/base"
fi

make .venv/.installed-test
for lock in base data torch-cpu vector flow; do
    $BIN/python -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
        --dest "$CACHE/wheels" --requirement "images/locks/$lock.txt"
done
$BIN/glassworks images build --base-image "$BASE" --wheelhouse "$CACHE/wheels"
$BIN/glassworks images list --base-image "$BASE"
$BIN/python -m pytest tests/docker "$@"
