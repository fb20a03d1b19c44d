#!/usr/bin/env bash
# Makes .venv, installs the test extra and runs the whole test suite.
#
#   bash launch/test.sh [--with-torch] [pytest arguments]
#
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
exec .venv/bin/python -m pytest "$@"
