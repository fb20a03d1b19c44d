# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the repository's root and installs the project there.
# It installs again only after pyproject.toml has changed.

install_environment() { # install_environment EXTRAS, e.g. "[test]" or ""
  local extras="$1" python="${PYTHON:-python3}" stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 2
  fi
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || {
      echo "error: cannot make .venv (on Debian: apt-get install python3-venv)" >&2
      exit 2
    }
  fi
  stamp=".venv/installed$extras"
  if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "installing into .venv ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
    touch "$stamp"
  fi
}
