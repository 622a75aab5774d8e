#!/usr/bin/env bash
# Installs cotjax on one host. Usage: launch/host.sh EXTRA [HOST:/SHARE]
# EXTRA is an extra of pyproject.toml (tpu, cuda12, cuda13). HOST:/SHARE is an NFS export
# (Filestore) to mount at /mnt/cotjax.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1
share=${2:-}

missing=()
for tool in cmake make g++; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ -z "$share" ] || [ -e /sbin/mount.nfs ] || missing+=(nfs-common)
if [ ${#missing[@]} -gt 0 ]; then
    # On a fresh host, its own set-up may still hold apt's lock.
    sudo apt-get -o DPkg::Lock::Timeout=300 update -q
    sudo apt-get -o DPkg::Lock::Timeout=300 install -q -y "${missing[@]}"
fi
if [ -n "$share" ] && ! mountpoint -q /mnt/cotjax; then
    sudo mkdir -p /mnt/cotjax
    sudo mount -t nfs "$share" /mnt/cotjax
    sudo chmod 1777 /mnt/cotjax
fi
recent='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
if ! python3 -c "$recent" 2>/dev/null; then
    # TPU VM images come with Python 3.10.
    python3 -m pip install --user --quiet uv
    python3 -m uv python install 3.12
    PYTHON=$(python3 -m uv python find 3.12)
    export PYTHON
fi
. launch/setup.sh "$extra"
