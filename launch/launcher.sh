# shellcheck shell=bash
# Sourced by the scripts that start training on clusters: their options, what they refuse before
# anything is rented, and whether a run that was started again has got any further.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "$(date +%H:%M:%S) $*" >&2; }

die() {
  echo "error: ${*//$'\n'/ }" >&2 # on one line, whatever it quotes
  exit 2
}

# A word as one would type it.
quote() {
  local escaped="'\\''"
  case $1 in
    "" | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s' " "${1//\'/$escaped}" ;;
    *) printf '%s ' "$1" ;;
  esac
}

# read_options "NAME..." "SWITCH..." OTHER ARGUMENT...: sets the variable of each --NAME=VALUE, and
# that of each --SWITCH to 1, with _ for every - of a name. The rest goes to the function OTHER, one
# at a time.
read_options() {
  local values=" $1 " switches=" $2 " other=$3 argument option # none is an option itself
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

# check_word OPTION VALUE: names go into commands and manifests as they are.
check_word() {
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9_./:@-]*$ ]] || die "$1 must be a name, not '$2'"
}

is_bucket() { [[ $1 =~ ^(gs|s3)://[^/] ]]; }

# check_paths WORD...: refuses URLs, alone or as the value of a flag, but those of buckets.
check_paths() {
  local word
  for word in "$@"; do
    if [[ ${word#*=} =~ ^[A-Za-z][A-Za-z0-9+.-]*:/ ]] && ! is_bucket "${word#*=}"; then
      die "$word: this is no path; give a bucket's, such as gs://bucket/ffhq256, or mount what it" \
        "names on every host, and give the folder, such as /mnt/runs/ffhq256"
    fi
  done
}

# The flags for launch/train.py, and the values of two of them.
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

# Ends with one line where training would, as far as that can be told without its data and devices.
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
    echo "note: no Python with the project's packages here: config keys are not checked" >&2
  fi
}

# What changes when the run in the folder $1 gets on: its newest checkpoint, its last metrics. Of one
# in a bucket it is what `$PYTHON -m nvae_jax.resume` says.
progress_of() {
  if [[ $1 == *://* ]]; then
    # One that cannot be asked is taken to have got on.
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

# count_fruitless BEFORE NOW: counts ends of the run, one after the other, without any progress.
fruitless=0
count_fruitless() {
  if [[ $1 == "$2" ]]; then fruitless=$((fruitless + 1)); else fruitless=0; fi
}
# shellcheck disable=SC2034 # the scripts read it
MOST_FRUITLESS=3
