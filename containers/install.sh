#!/bin/sh
# containers/install.sh cpu|cuda: the environment into /opt/venv of a bare Debian, by the versions of
# constraints.txt. Dockerfile and apptainer.def run it in the project's folder; it wants root.
# TORCH_INDEX: where else to look for torch, such as https://download.pytorch.org/whl/cu126
set -eu

fail() { printf 'install: %s\n' "$1" >&2; exit 2; }

case ${1:-} in
cuda) ;;
cpu) : "${TORCH_INDEX:=https://download.pytorch.org/whl/cpu}" ;;
*) fail "variant '${1:-}', wanted cpu or cuda" ;;
esac
[ -f constraints.txt ] || fail "no constraints.txt in $PWD; run it in the project's folder"
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "wants root on a Debian, as in an image"

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends ca-certificates git make python3-venv
rm -rf /var/lib/apt/lists/*
# 2.14.1+cpu is above 2.14.1, so the index that has it decides
[ -z "${TORCH_INDEX:-}" ] ||
    export PIP_EXTRA_INDEX_URL="$TORCH_INDEX${PIP_EXTRA_INDEX_URL:+ $PIP_EXTRA_INDEX_URL}"
export PIP_NO_CACHE_DIR=1 PYTHON=python3 VENV=/opt/venv EXTRAS=jpeg
sh tools/setup_env.sh
cuda=$(/opt/venv/bin/python -c 'import torch; print(torch.version.cuda or "")')
case $1$cuda in
cpu | cuda?*) ;;
*) fail "wanted torch for $1, got one for ${cuda:+CUDA }${cuda:-CPUs}; TORCH_INDEX says where to look" ;;
esac
/opt/venv/bin/python tools/doctor.py
