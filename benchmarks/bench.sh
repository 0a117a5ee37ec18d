#!/bin/sh
# What `make bench` calls: prepares everything, runs the benchmarks, stores results, writes and prints the tables.
# Arguments go to run.py, the environment to setup.sh and run.py:
#   sh benchmarks/bench.sh --peers pyhv,picows --cases fan-1000 --seconds 1
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
sh "$here/setup.sh"
# exec: a signal to this process is a signal to run.py, which ends its helpers.
exec "$here/.cache/venv/bin/python" "$here/run.py" "$@"
