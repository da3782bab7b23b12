#!/usr/bin/env bash
# Make .venv with Python 3.12 or 3.13 and everything that pyproject.toml names, pinned by constraints.txt,
# or with the argument `gpu` by launch/constraints-gpu.txt, and FlashAttention 4. Made once, it stays of its kind.
# Needs any one of: a Python >= 3.12, pyenv with such a version, or uv (or a Python that can install uv).
# Everything is kept below the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CACHE_DIR="$PWD/.cache/uv" UV_PYTHON_INSTALL_DIR="$PWD/.cache/python" PIP_DISABLE_PIP_VERSION_CHECK=1

log() { printf 'setup: %s\n' "$*" >&2; }

suits() { # does this interpreter start, and is it one that the dependencies support?
    "$1" -c 'import sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

find_python() {
    local roots=("${PYENV_ROOT:-$HOME/.pyenv}") candidate
    if command -v pyenv >/dev/null 2>&1; then roots+=("$(pyenv root)"); fi
    for candidate in ${ALIA_PYTHON:+"$ALIA_PYTHON"} python3.12 python3.13 python3 python \
        "${roots[0]}"/versions/3.12*/bin/python "${roots[-1]}"/versions/3.12*/bin/python \
        "${roots[-1]}"/versions/3.13*/bin/python; do
        if suits "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

find_uv() {
    if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then command -v uv; return 0; fi
    local candidate
    for candidate in "$@" python3 python; do
        [ -n "$candidate" ] || continue
        if [ -x .bootstrap/bin/uv ] || { "$candidate" -m venv .bootstrap && .bootstrap/bin/pip install -q --no-cache-dir uv; } >&2; then
            echo "$PWD/.bootstrap/bin/uv"
            return 0
        fi
        rm -rf .bootstrap
    done
    return 1
}

kind=${1:-$(cat .venv/ready 2>/dev/null || true)}
if [ "$kind" = gpu ]; then
    wanted=(-c launch/constraints-gpu.txt -e '.[dev,demo,languages]' 'flash-attn-4[cu13]>=4.0.0b36')
else
    kind=host
    wanted=(-c constraints.txt -e '.[dev,demo,languages]')
fi

python=$(find_python || true)
uv=$(find_uv "$python" || true)
if [ -z "$python" ] && [ -z "$uv" ]; then
    log "found neither Python 3.12 or 3.13 nor uv; install one of them, or set ALIA_PYTHON to an interpreter"
    exit 1
fi
log "Python: ${python:-3.12, fetched by uv}; installing into .venv (about 5 GB with torch's CUDA libraries)"

if [ -n "$uv" ]; then
    [ -x .venv/bin/python ] && suits .venv/bin/python || "$uv" venv -q --clear --seed --python "${python:-3.12}" .venv
    "$uv" pip install -q --python .venv/bin/python "${wanted[@]}"
else
    [ -x .venv/bin/python ] && suits .venv/bin/python || "$python" -m venv --clear .venv
    .venv/bin/pip install -q --no-cache-dir "${wanted[@]}"
fi
echo "$kind" > .venv/ready
log "ready"
