#!/usr/bin/env bash
# Makes .venv, installs the test extra and runs the whole test suite.
set -euo pipefail

usage() {
  cat <<'END'
bash launch/test.sh [--quick] [--with-torch] [pytest arguments]

Makes .venv, installs the test extra and runs the whole test suite, in several processes; "-n 0"
runs it in one, which --pdb requires.

  --quick       only the tests in tests/quick.txt: some of every package, in about three minutes
  --with-torch  install PyTorch too, for the tests that read the published checkpoint format
END
}

cd "$(dirname "$0")/.."
source launch/launcher.sh
source launch/environment.sh
torch='' arguments=()
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit 0 ;;
    --quick) arguments+=("@tests/quick.txt") ;;
    --with-torch) torch=1 ;;
    *) arguments+=("$argument") ;;
  esac
done
install_environment "[test]"
known='' # its list takes seconds, and most calls need none
for argument in ${arguments[@]+"${arguments[@]}"}; do
  [[ $argument == --* ]] || continue
  known=${known:-$(.venv/bin/python -m pytest --help)}
  grep -qwe "${argument%%=*}" <<<"$known" ||
    die "unknown option $argument; see --help, and pytest --help"
done
if [[ -n $torch ]]; then
  .venv/bin/python -c "import torch" 2>/dev/null ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
fi
# Tests start hundreds of processes, each of which would compile the sources of every module.
unset PYTHONDONTWRITEBYTECODE
# One more than there are cores, because some tests wait for servers and other processes.
workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
exec .venv/bin/python -m pytest -n "$((workers < 4 ? workers : 4))" \
  --dist=loadfile --no-loadscope-reorder \
  ${arguments[@]+"${arguments[@]}"}
