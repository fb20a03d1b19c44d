# shellcheck shell=bash
# Sourced by the scripts that start training on clusters: it reads their options, checks them before
# anything is rented, and tells whether a restarted run has made progress.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "$(date +%H:%M:%S) $*" >&2; }

die() {
  echo "error: ${*//$'\n'/ }" >&2 # always on one line
  exit 2
}

# Prints a word, quoted for the shell if necessary.
quote() {
  local escaped="'\\''"
  case $1 in
    "" | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s' " "${1//\'/$escaped}" ;;
    *) printf '%s ' "$1" ;;
  esac
}

# read_options "NAME..." "SWITCH..." OTHER ARGUMENT...: for each argument --NAME=VALUE, sets the
# variable NAME (with _ for -) to VALUE; for each --SWITCH, sets its variable to 1. Calls
# the function OTHER with each of the remaining arguments.
read_options() {
  local values=" $1 " switches=" $2 " other=$3 argument option # not names of options
  for argument in "${@:4}"; do
    option=${argument#--} option=${option%%=*}
    if [[ $argument == --help || $argument == -h ]]; then
      usage && exit 0
    elif [[ $argument == --*=* && $option != *" "* && $values == *" $option "* ]]; then
      [[ -n ${argument#*=} ]] || die "--$option must not be empty; see --help"
      printf -v "${option//-/_}" %s "${argument#*=}"
    elif [[ $argument == "--$option" && $option != *" "* && $switches == *" $option "* ]]; then
      printf -v "${option//-/_}" 1
    else
      "$other" "$argument"
    fi
  done
}

# check_number NAME VALUE LOWEST HIGHEST
check_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3 || $2 > $4)); then
    die "$1 must be a number from $3 to $4, not '$2'"
  fi
}

# check_word OPTION VALUE: checks a name, which is inserted into commands and manifests.
check_word() {
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9_./:@-]*$ ]] || die "$1 must be a name, not '$2'"
}

is_bucket() { [[ $1 =~ ^(gs|s3)://[^/] ]]; }

# check_paths WORD...: refuses URLs, alone or as the value of a flag, unless they name buckets.
check_paths() {
  local word
  for word in "$@"; do
    if [[ ${word#*=} =~ ^[A-Za-z][A-Za-z0-9+.-]*:/ ]] && ! is_bucket "${word#*=}"; then
      die "$word: this URL is not supported; give a bucket, such as gs://bucket/ffhq256, or mount" \
        "it on every host and give the folder, such as /mnt/runs/ffhq256"
    fi
  done
}

# Collects the flags for launch/train.py, and the values of two of them.
flags=() config='' workdir=''
add_flag() {
  case $1 in
    --config=*) config=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --config.*=*) ;;
    *) die "unknown option $1; see --help" ;;
  esac
  flags+=("$1")
}

# Ends with a one-line error if training would, as far as that is known without data and devices.
check_flags() {
  local python found=''
  [[ -n $config ]] || die "--config=configs/X.py is missing; see --help"
  [[ -n $workdir ]] || die "--workdir=DIR is missing or empty; see --help"
  check_paths "${flags[@]}"
  for python in ${PYTHON:-"$root/.venv/bin/python" python python3}; do
    "$python" - 2>/dev/null <<'END' && found=$python && break
import importlib.util, sys
needed = "absl", "flax", "jax", "ml_collections", "orbax"
sys.exit(sys.version_info < (3, 11) or not all(map(importlib.util.find_spec, needed)))
END
  done
  if [[ -n $found ]]; then
    (cd "$root" && JAX_PLATFORMS=cpu "$found" launch/train.py --check "${flags[@]}") || exit 2
  else
    [[ -f $config || -f $root/$config || -f $root/configs/$config.py ]] ||
      die "--config: there is no file $config"
    echo "note: no Python with the project's packages: config keys are not checked" >&2
  fi
}

# Prints text that changes when the run in the folder $1 makes progress: the number of its newest
# checkpoint and its last metrics. For a run in a bucket it is the output of `$PYTHON -m
# nvae_jax.resume`.
progress_of() {
  if [[ $1 == *://* ]]; then
    # If the bucket cannot be read, the run is assumed to have made progress.
    "${PYTHON:-python}" -m nvae_jax.resume "$1" 2>/dev/null || echo "unknown $RANDOM"
    return
  fi
  local folder newest=0 run=${1/#'~/'/$HOME/}
  for folder in "$run"/checkpoints/[0-9]*; do
    folder=${folder##*/}
    if [[ $folder =~ ^[0-9]+$ ]] && ((10#$folder > newest)); then newest=$((10#$folder)); fi
  done
  echo "$newest $(tail -n 1 "$run/metrics.jsonl" 2>/dev/null)"
}

# count_fruitless BEFORE NOW: counts consecutive failures of the run without progress.
fruitless=0
count_fruitless() {
  if [[ $1 == "$2" ]]; then fruitless=$((fruitless + 1)); else fruitless=0; fi
}
# shellcheck disable=SC2034 # the scripts read it
MOST_FRUITLESS=3
