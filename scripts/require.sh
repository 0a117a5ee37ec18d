#!/bin/sh
# Names what is missing, each in one line that says what to install, and exits with 1 if anything is.
#   sh scripts/require.sh python rust linker browser
# PYTHON: the interpreter to use (python3).
set -u
python=${PYTHON:-python3}
missing=0

miss() {
    echo "pyHV needs $1" >&2
    missing=1
}

require_python() {
    if ! command -v "$python" >/dev/null 2>&1; then
        miss "Python 3.10 or later, and there is no $python: install it (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=..."
        return
    fi
    # A version manager's stand-in may be there and have nothing to stand in for.
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=
    case $version in
    3.1[0-9] | 3.[2-9][0-9]) ;;
    '') miss "Python 3.10 or later, and $python does not run: install it (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=..." && return ;;
    *) miss "Python 3.10 or later, and $python is $version: install a later one, or name one: make PYTHON=python3.12" && return ;;
    esac
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        miss "the Python modules venv and ensurepip, which $python lacks: install them (Debian: apt-get install python3-venv)"
}

require_rust() {
    if ! command -v cargo >/dev/null 2>&1 || ! command -v rustc >/dev/null 2>&1; then
        miss "Rust 1.95 or later, and cargo or rustc is not on PATH: install Rust with rustup (rustup.rs)"
        return
    fi
    version=$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
    minor=${version#1.}
    minor=${minor%%.*}
    case $minor in
    '' | *[!0-9]*) miss "Rust 1.95 or later, and rustc does not tell its version: install Rust with rustup (rustup.rs)" ;;
    *) [ "$minor" -ge 95 ] || miss "Rust 1.95 or later, and rustc is $version: rustup update stable" ;;
    esac
}

require_rust_tools() {
    command -v cargo >/dev/null 2>&1 || return 0 # require_rust has said so
    for tool in clippy fmt; do
        cargo "$tool" --version >/dev/null 2>&1 ||
            miss "cargo $tool, which is not installed: rustup component add clippy rustfmt"
    done
}

require_linker() {
    # rustc links with cc; Windows has its own linker, which rustup asks for.
    command -v cc >/dev/null 2>&1 ||
        case $(uname -s) in
        MINGW* | MSYS* | CYGWIN*) ;;
        Darwin) miss "a C linker, and there is no cc: xcode-select --install" ;;
        *) miss "a C linker, and there is no cc: install a C compiler (Debian: apt-get install gcc libc6-dev)" ;;
        esac
}

require_browser() {
    for program in chromium chromedriver; do
        command -v "$program" >/dev/null 2>&1 ||
            miss "$program for the browser test: install Chromium and its driver (Debian: apt-get install chromium chromium-driver)"
    done
}

for what in "$@"; do
    case $what in
    python) require_python ;;
    rust) require_rust ;;
    rust-tools) require_rust_tools ;;
    linker) require_linker ;;
    browser) require_browser ;;
    *) echo "require.sh: what is $what?" >&2 && exit 2 ;;
    esac
done
exit "$missing"
