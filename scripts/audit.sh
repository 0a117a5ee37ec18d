#!/bin/sh
# `make audit`: what pyHV is built from. cargo-deny holds each workspace against deny.toml (licences, versions side by side,
# sources) and against RustSec's advisories; pip-audit asks PyPI what is known of the pinned development tools.
#
# What is known has to be fetched. What cannot be fetched is told in the last line, and is no failure; a finding is.
# Usage: sh scripts/audit.sh PYTHON, from the root; PYTHON has venv. The tools are kept in .cache.
set -u
python=$1
tools=$PWD/.cache
failed=0
missing=

deny() {
    "$tools/bin/cargo-deny" --log-level error --config deny.toml "$@"
}

# An exception that one workspace needs is not missed in another.
for manifest in Cargo.toml benchmarks/load/Cargo.toml fuzz/Cargo.toml; do
    echo "== cargo deny: licences, versions, sources of $manifest"
    deny --manifest-path "$manifest" check --allow unmatched-skip licenses bans sources || failed=1
done

echo "== cargo deny: advisories"
if deny fetch db >"$tools/advisories.log" 2>&1; then
    for manifest in Cargo.toml benchmarks/load/Cargo.toml fuzz/Cargo.toml; do
        deny --manifest-path "$manifest" check --disable-fetch advisories || failed=1
    done
else
    tail -n 3 "$tools/advisories.log"
    missing="RustSec's advisories"
fi

# Writes a report on a file of requirements, if what is known can be reached. pip-audit fails for a finding and for want of the
# network alike; only in the former case there is a report.
ask() {
    rm -f "$tools/pip-audit.json"
    "$tools/audit/bin/python" -m pip_audit --requirement "$1" --no-deps --disable-pip --progress-spinner off \
        --format json --output "$tools/pip-audit.json" >"$tools/pip-audit.log" 2>&1
}

echo "== pip-audit of requirements-dev.lock"
# A mirror of PyPI may serve packages and know nothing against any. So first one with a hole that all the world knows.
echo "jinja2==2.10" >"$tools/known.txt"
if ask "$tools/known.txt"; then
    echo "what answers for pypi.org knows of nothing, not even against jinja2 2.10"
    missing="${missing:+$missing, }PyPI's advisories"
elif [ ! -s "$tools/pip-audit.json" ]; then
    tail -n 1 "$tools/pip-audit.log"
    missing="${missing:+$missing, }PyPI's advisories"
elif ask requirements-dev.lock; then
    echo "nothing is known against them"
elif [ -s "$tools/pip-audit.json" ]; then
    "$python" -c 'import json, sys
for package in json.load(open(sys.argv[1]))["dependencies"]:
    for known in package.get("vulns", []):
        print(package["name"], package["version"], known["id"], "mended in", *(known["fix_versions"] or ["no version"]))
' "$tools/pip-audit.json"
    failed=1
else
    tail -n 1 "$tools/pip-audit.log"
    missing="${missing:+$missing, }PyPI's advisories"
fi

if [ -n "$missing" ]; then
    echo "NOT CHECKED, because it could not be fetched: $missing"
fi
exit $failed
