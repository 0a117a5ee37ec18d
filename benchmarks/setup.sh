#!/bin/sh
# Prepares benchmarks/.cache: the load tools, and a virtual environment with pyHV and its peers. Safe to repeat.
#   PYTHON=python3.13   interpreter of a new environment (python3)
#   BENCH_PYHV=0        leave out pyHV itself: peers only
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$here/.cache
mkdir -p "$cache"

cargo build --release --locked --quiet --manifest-path "$here/load/Cargo.toml" --target-dir "$cache/target"

[ -x "$cache/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$cache/venv"
python=$cache/venv/bin/python

# One by one: a peer that does not install here is left out, and run.py says so.
# msgspec is pyHV's JSON, as orjson is robyn's.
for peer in uvloop picows websockets aiohttp socketify uvicorn httptools starlette granian robyn msgspec; do
    "$python" -m pip install --quiet --disable-pip-version-check "$peer" ||
        echo "setup: $peer does not install here" >&2
done

if [ "${BENCH_PYHV:-1}" != 0 ]; then
    # A target folder of its own: a benchmark neither waits for a build in progress nor overwrites one.
    CARGO_TARGET_DIR=$cache/target-pyhv \
        "$python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$here/.."
fi
