#!/bin/sh
# Prepares compliance/.cache: a virtual environment with the suite, converted to Python 3. Safe to repeat; nothing
# happens when what it is made from has not changed.
#   PYTHON=python3.12   interpreter of the environment (python3)
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$here/.cache
suite=autobahntestsuite-25.10.1

mark="$suite $(cat "$here/setup.sh" "$here/requirements.txt" "$here/convert.py" "$here/octets.py" | cksum)"
if [ "$(cat "$cache/ready" 2>/dev/null)" = "$mark" ] && "$cache/venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

echo "== the conformance suite, into compliance/.cache"
rm -rf "$cache"
mkdir -p "$cache/download"
"${PYTHON:-python3}" -m venv "$cache/venv"
python=$cache/venv/bin/python
pip() {
    "$python" -m pip "$@" --quiet --disable-pip-version-check
}
pip install --use-pep517 --requirement "$here/requirements.txt"
# Masking and UTF-8 checks in C. Without it the suite's own, in Python, make group 9 slow.
pip install wsaccel==0.6.7 || echo "setup: wsaccel does not install here: the suite will be slow" >&2

# The sdist, not installed: pip could not compile its Python 2.
pip download --no-deps --no-binary :all: --dest "$cache/download" "$(echo "$suite" | sed 's/-/==/')"
tar xzf "$cache/download/$suite.tar.gz" -C "$cache/download"
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -W ignore "$here/convert.py" "$cache/download/$suite/autobahntestsuite" "$packages/autobahntestsuite"
rm -rf "$cache/download"

echo "$mark" >"$cache/ready"
