#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster: fills in launch/gke_jobset.yaml.
set -euo pipefail

usage() {
  cat <<'END'
launch/gke.sh --name=NAME --image=IMAGE --accelerator=TYPE --topology=AxB[xC] [--chips-per-host=4]
              --volume-claim=CLAIM | --bucket=BUCKET [--mount=/data]
              [--slices=1] [--restarts=50] [--spot] [--dry-run]
              --config=configs/X.py --workdir=DIR [--config.KEY=VALUE ...]

Starts a JobSet in the current cluster of kubectl (launch/gke_jobset.yaml lists its requirements),
for example on 16 chips of TPU v5e:

  launch/gke.sh --name=ffhq --image=europe-docker.pkg.dev/me/nvae/nvae_jax:1 \
    --accelerator=tpu-v5-lite-podslice --topology=4x4 --volume-claim=runs \
    --config=configs/ffhq256.py --workdir=/data/ffhq256

After `kubectl delete jobset NAME`, the same command resumes the run.

  --volume-claim=CLAIM  a PersistentVolumeClaim that all pods can write (ReadWriteMany)
  --bucket=BUCKET       a Cloud Storage bucket, mounted by the cluster's Cloud Storage FUSE driver
  --mount=PATH          where it is mounted in the pods; DIR must be inside
  --slices=N            number of slices of this topology that train one run (Multislice)
  --spot                use spot nodes: cheaper, but can be preempted; default: on demand
  --restarts=N          maximum number of restarts
  --dry-run             check the flags and print the JobSet instead: pipe it to `kubectl apply -f -`
END
}

# shellcheck source=launch/launcher.sh
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

name='' image='' accelerator='' topology='' chips_per_host=4 slices=1 restarts=50 spot='' dry_run=''
volume_claim='' bucket='' mount=/data
read_options "name image accelerator topology chips-per-host volume-claim bucket mount slices restarts" \
  "spot dry-run" add_flag "$@"
mount=${mount%/}
for option in name image accelerator topology; do
  [[ -n ${!option} ]] || die "--$option is missing; see --help"
  check_word "--$option" "${!option}"
done
[[ -z $volume_claim ]] || check_word --volume-claim "$volume_claim"
[[ -z $bucket ]] || check_word --bucket "$bucket"
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  die "--name must consist of a-z, 0-9 and -, and start with a letter, not '$name'"
[[ $topology =~ ^[0-9]{1,3}(x[0-9]{1,3}){1,2}$ ]] ||
  die "--topology must be such as 4x4, not '$topology'"
check_number --chips-per-host "$chips_per_host" 1 8
check_number --restarts "$restarts" 0 1000
check_number --slices "$slices" 1 256

all_chips=1
for side in ${topology//x/ }; do all_chips=$((all_chips * 10#$side)); done
check_number "the number of chips of --topology=$topology" "$all_chips" 1 16384
((all_chips % chips_per_host == 0)) ||
  die "--topology=$topology has $all_chips chips, which is no multiple of $chips_per_host per host"

check_flags
is_bucket "$workdir" || [[ -n $volume_claim || -n $bucket ]] ||
  die "--volume-claim or --bucket is missing: each pod would have its own --workdir=$workdir, and" \
    "lose it when it ends"
[[ -z $volume_claim || -z $bucket ]] || die "--volume-claim and --bucket: give only one of them"
[[ $mount =~ ^(/[A-Za-z0-9_.-]+)+$ ]] || die "--mount must be such as /data, not '$mount'"
is_bucket "$workdir" || [[ $workdir == "$mount"/?* && $workdir/ != */../* ]] ||
  die "--workdir=$workdir must be a folder in $mount, which all pods share (--mount)"

# JSON strings, which are also valid YAML.
arguments=''
for flag in "${flags[@]}"; do
  flag=${flag//\\/\\\\}
  arguments+="${arguments:+, }\"${flag//\"/\\\"}\""
done

jobset=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
fill_in() {
  local field="\${$1}" # quoted below, because it is not a pattern
  jobset=${jobset//"$field"/"$2"}
}
without() { jobset=$(grep -v "# with --$1\$" <<<"$jobset"); }
[[ -n $spot ]] || without spot
[[ -n $volume_claim ]] || without volume-claim
[[ -n $bucket ]] || without bucket
[[ -z $volume_claim && -z $bucket ]] || without neither
jobset=$(grep -v '^#' <<<"$jobset")
fill_in NAME "$name"
fill_in RESTARTS "$restarts"
fill_in SLICES "$slices"
fill_in HOSTS $((all_chips / chips_per_host))
fill_in ACCELERATOR "$accelerator"
fill_in TOPOLOGY "$topology"
fill_in IMAGE "$image"
fill_in CLAIM "$volume_claim"
fill_in BUCKET "$bucket"
fill_in MOUNT "$mount"
fill_in CHIPS_PER_HOST "$chips_per_host"
fill_in ARGS "$arguments"

if [[ -n $dry_run ]]; then
  echo "$jobset"
  exit 0
fi
command -v kubectl >/dev/null || die "kubectl is not installed; --dry-run prints the JobSet"
selector=jobset.sigs.k8s.io/jobset-name=$name
if ! answer=$(kubectl apply -f - <<<"$jobset" 2>&1); then
  case $answer in
    *'no matches for kind "JobSet"'*)
      die "the cluster has no JobSet yet: install it, see https://jobset.sigs.k8s.io ($answer)" ;;
    *'field is immutable'* | *'Value is immutable'*)
      die "the JobSet $name exists with other settings: kubectl delete jobset $name" ;;
    *) die "$answer" ;;
  esac
fi
echo "$answer"
echo "logs: kubectl logs --follow --prefix --max-log-requests=$((slices * all_chips / chips_per_host))" \
  "--selector=$selector"
echo "logs of deleted pods: gcloud logging read" \
  "'labels.\"k8s-pod/jobset_sigs_k8s_io/jobset-name\"=\"$name\"'"
