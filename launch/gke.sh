#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster: fills in launch/gke_jobset.yaml.
set -euo pipefail

usage() {
  cat <<'END'
launch/gke.sh --name=NAME --image=IMAGE --accelerator=TYPE --topology=AxB[xC] [--chips-per-host=4]
              [--restarts=50] [--spot] [--dry-run]
              --config=configs/X.py --workdir=DIR [--config.KEY=VALUE ...]

Starts a JobSet in the cluster that kubectl talks to (see launch/gke_jobset.yaml for what it needs),
for instance on 16 chips of TPU v5e:

  launch/gke.sh --name=ffhq --image=europe-docker.pkg.dev/me/nvae/nvae_jax:1 \
    --accelerator=tpu-v5-lite-podslice --topology=4x4 \
    --config=configs/ffhq256.py --workdir=/data/ffhq256

The same command goes on after `kubectl delete jobset NAME`.

  --restarts=N  how often the pods are started again
  --dry-run     print the JobSet instead: pipe it to `kubectl apply -f -`
END
}

die() {
  echo "error: $*" >&2
  exit 2
}

name='' image='' accelerator='' topology='' chips=4 restarts=50 spot='' dry_run=''
config='' workdir='' flags=()
# shellcheck disable=SC2034 # all are read through ${!option}
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --help | -h) usage && exit 0 ;;
    --name=*) name=$value ;;
    --image=*) image=$value ;;
    --accelerator=*) accelerator=$value ;;
    --topology=*) topology=$value ;;
    --chips-per-host=*) chips=$value ;;
    --restarts=*) restarts=$value ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    --config=*) config=1 flags+=("$argument") ;;
    --workdir=*) workdir=1 flags+=("$argument") ;;
    --config.*=*) flags+=("$argument") ;;
    *) die "unknown option $argument; see --help" ;;
  esac
done
for option in name image accelerator topology config workdir; do
  [[ -n ${!option} ]] || die "--$option is missing; see --help"
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  die "--name must be of a-z, 0-9 and -, and start with a letter, not '$name'"
[[ $image =~ ^[A-Za-z0-9_./:@-]+$ ]] || die "--image '$image' is not the name of an image"
[[ $accelerator =~ ^[a-z0-9-]+$ ]] || die "--accelerator '$accelerator' is not such as tpu-v6e-slice"
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "--topology must be such as 4x4, not '$topology'"
[[ $chips =~ ^[1-9][0-9]*$ ]] || die "--chips-per-host must be a positive number, not '$chips'"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts must be a number, not '$restarts'"

all_chips=$((${topology//x/ * }))
((all_chips > 0 && all_chips % chips == 0)) ||
  die "--topology=$topology has $all_chips chips, which hosts of $chips cannot have"

# JSON strings, which YAML takes too.
arguments=''
for flag in "${flags[@]}"; do
  flag=${flag//\\/\\\\}
  arguments+="${arguments:+, }\"${flag//\"/\\\"}\""
done

jobset=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
fill_in() {
  local field="\${$1}" # quoted below: it is no pattern
  jobset=${jobset//"$field"/"$2"}
}
[[ -n $spot ]] || jobset=$(grep -v '# with --spot$' <<<"$jobset")
jobset=$(grep -v '^#' <<<"$jobset")
fill_in NAME "$name"
fill_in RESTARTS "$restarts"
fill_in HOSTS $((all_chips / chips))
fill_in ACCELERATOR "$accelerator"
fill_in TOPOLOGY "$topology"
fill_in IMAGE "$image"
fill_in CHIPS_PER_HOST "$chips"
fill_in ARGS "$arguments"

if [[ -n $dry_run ]]; then
  echo "$jobset"
  exit 0
fi
command -v kubectl >/dev/null || die "kubectl is not installed; --dry-run prints the JobSet"
kubectl apply -f - <<<"$jobset"
selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
echo "logs: kubectl logs --follow --selector=$selector"
