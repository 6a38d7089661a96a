# Sourced by the scripts beside it: makes .venv in the project's folder and installs zchunk.
#   make_venv ""       what users need        make_venv "[test]"   what tests need too
# Installs again only when setup.cfg or pyproject.toml changed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "zchunk needs Python 3.11 or newer with its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2
    return 1
}

make_venv() {
    local extras=$1 python stamp
    stamp="$extras $(cat setup.cfg pyproject.toml | cksum)"
    if [ -x .venv/bin/zchunk ] && [ "$(cat .venv/.installed 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    python=$(find_python) || exit 1
    echo "installing zchunk$extras into .venv ..." >&2
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$extras"
    echo "$stamp" >.venv/.installed
}
