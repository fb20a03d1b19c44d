#!/usr/bin/env bash
# Makes .venv, installs the test extra and runs the whole test suite.
#
#   bash launch/test.sh [--with-torch] [pytest arguments]
#
# Several processes share the suite; "-n 0" runs it in one, as --pdb wants it.
# --with-torch installs PyTorch too, for the tests that read the published checkpoint format.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_environment "[test]"
if [ "${1:-}" = "--with-torch" ]; then
  shift
  .venv/bin/python -c "import torch" 2>/dev/null ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
fi
exec .venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
