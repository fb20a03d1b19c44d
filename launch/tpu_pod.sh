#!/usr/bin/env bash
# Trains on a slice of a Cloud TPU pod, and resumes after preemption.
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_pod.sh --name=NAME --zone=ZONE --accelerator=TYPE [--version=VERSION] [--project=PROJECT]
                  [--spot] [--slices=N] [--setup=COMMAND] [--restarts=100] [--logs=DIR] [--delete]
                  [--dry-run]
                  --config=configs/X.py --workdir=DIR [--config.KEY=VALUE ...]

Creates the slice NAME unless it exists, copies the code to all of its hosts, installs it, trains,
and shows the log of host 0 until training ends; the logs of all hosts are copied to this machine.
For 16 chips of TPU v5e, with runs on a Filestore instance at 10.0.0.2:

  launch/tpu_pod.sh --name=ffhq --zone=us-west4-a --accelerator=v5litepod-16 --spot \
    --setup='mountpoint -q /mnt/runs || { sudo apt-get install -y nfs-common &&
      sudo mkdir -p /mnt/runs && sudo mount 10.0.0.2:/runs /mnt/runs; }' \
    --config=configs/ffhq256.py --workdir=/mnt/runs/ffhq256

DIR must be on a file system that all hosts share and that outlives the slice: NFS as above, or a
bucket mounted with gcsfuse (with --rename-dir-limit=100000 unless it has a hierarchical namespace).

When the slice is preempted, or a host is lost, the slice is created again if necessary and the run
resumes. Training continues without this script, which can be stopped and restarted at any time. It
ends when a host refuses its input, after three consecutive restarts without a step, and at once
after a permanent error of gcloud: no project, permission or quota, or a wrong zone.

  --version=VERSION  software version of the hosts; found from TYPE for v2 to v6e
  --spot             cheaper, but can be preempted at any time; default: on demand
  --slices=N         number of slices that train one run (Multislice)
  --setup=COMMAND    runs on every host before each start, for example to mount a disk
  --restarts=N       maximum number of restarts
  --logs=DIR         folder of the logs, DIR/TIME/slice_S/HOST.log (default: NAME-logs)
  --delete           delete the slice at the end; otherwise it remains, and costs money
  --dry-run          check the flags and print the commands instead
END
}

# shellcheck source=launch/launcher.sh
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

name='' zone='' accelerator='' version='' spot='' setup=true restarts=100 delete='' dry_run=''
project='' slices=1 logs=''
read_options "name zone accelerator version project slices setup restarts logs" "spot delete dry-run" \
  add_flag "$@"
for option in name zone accelerator; do
  [[ -n ${!option} ]] || die "--$option is missing; see --help"
  check_word "--$option" "${!option}"
done
check_number --restarts "$restarts" 0 1000
check_number --slices "$slices" 1 256
logs=${logs:-$name-logs}
if [[ -z $version ]]; then
  case $accelerator in
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) die "--version is missing: no default is known for --accelerator=$accelerator" ;;
  esac
fi
check_flags
[[ -z $project ]] || check_word --project "$project"
place=("--zone=$zone" ${project:+"--project=$project"})
# A single slice can also have been created by hand; several are addressed by their queued request.
kind=tpu-vm nodes=("--node-id=$name") everywhere=()
if ((slices > 1)); then
  kind=queued-resources nodes=("--node-count=$slices" "--node-prefix=$name") everywhere=(--node=all)
fi
seconds=${TPU_POD_POLL_SECONDS:-20} # between two queries of a state

run() {
  if [[ -n $dry_run ]]; then
    for word in "$@"; do quote "$word"; done
    echo
  else
    "$@"
  fi
}

# Messages of gcloud about permanent errors, and similar ones about temporary errors.
permanent='PERMISSION_DENIED|Permission.* denied|not have permission|UNAUTHENTICATED'
permanent+='|INVALID_ARGUMENT|bad request|property \[[a-z/]*\] is not|have an active account'
permanent+='|gcloud auth login|invalid_grant|has not been used in project|SERVICE_DISABLED|billing'
permanent+='|Project [^/ ]* not found|Location [^/]*not found|accelerator .* was not found'
permanent+='|[Qq]uota.* (exceed|exhaust)|exceed.* quota|Invalid choice|unrecognized arguments|argument --'
passing='per (second|minute|hour|day)|no more capacity|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL'

# Ends with gcloud's message $1 if the error is permanent; otherwise only shows it.
end_if_permanent() {
  if grep -qE "$permanent" <<<"$1" && ! grep -qE "$passing" <<<"$1"; then
    die "$(grep -m 1 -E "ERROR|$permanent" <<<"$1")"
  fi
  echo "$1" >&2
}

# Sets `answer` to the output of `gcloud ... describe`, or to MISSING if nothing has that name.
ask() { # ask KIND FIELD
  answer=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="value($2)" \
    2>"$scratch/error") && return
  answer=MISSING
  # Such as "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource '...' was not found".
  grep -qE "NOT_FOUND|[Rr]esource.* not found" "$scratch/error" &&
    ! grep -qE "$permanent" "$scratch/error" && return
  answer=UNKNOWN
  end_if_permanent "$(<"$scratch/error")"
}

create() {
  run gcloud compute tpus queued-resources create "$name" "${nodes[@]}" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$version" ${spot:+--spot}
}

try_to_create() {
  shown=0 # new hosts have new logs
  create 2>"$scratch/error" && return
  end_if_permanent "$(<"$scratch/error")"
  ((++failures < 10)) || die "gcloud cannot create $name"
}

# Deletes the slice. Its request owns it; a slice that was created by hand has no request.
remove() {
  [[ -n $dry_run ]] || ask queued-resources state.state
  if [[ -n $dry_run || $answer != MISSING ]]; then
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

wait_for_slice() {
  local slice request failures=0 last=''
  while :; do
    if ((slices > 1)); then answer=MISSING; else ask tpu-vm state; fi
    slice=$answer request=''
    case $slice in
      READY) return ;;
      "" | UNKNOWN) ((++failures < 10)) || die "gcloud cannot tell the state of $name" ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | DELETING | UNHIDING) ;;
      MISSING)
        ask queued-resources state.state
        request=$answer
        case $request in
          MISSING) try_to_create ;;
          ACTIVE) ((slices == 1)) || return 0 ;;
          "" | UNKNOWN) ((++failures < 10)) || die "gcloud cannot tell the state of $name" ;;
          FAILED)
            ask queued-resources state.failedData.error.message
            end_if_permanent "the request for $name failed: $answer"
            ((++failures < 10)) || die "the request for $name failed repeatedly: $answer"
            remove || true
            ;;
          SUSPENDED) remove || true ;;
        esac
        ;;
      *) remove || true ;; # PREEMPTED, TERMINATED, STOPPED and other states without training
    esac
    if [[ $slice/$request != "$last" ]]; then
      last=$slice/$request
      say "slice $name: $slice${request:+, request: $request}"
    fi
    sleep "$seconds"
  done
}

# on HOSTS COMMAND [OPTION...]: runs a command on host 0, or on all of them.
on() {
  local command=$2 where=("--worker=$1")
  [[ $1 != all ]] || where+=(${everywhere[@]+"${everywhere[@]}"})
  # Detects a lost host within two minutes.
  run gcloud compute tpus "$kind" ssh "$name" "${place[@]}" "${where[@]}" "${@:3}" \
    --ssh-flag='-o ServerAliveInterval=30' --ssh-flag='-o ServerAliveCountMax=4' \
    --command="$command"
}

# Shows the log of host 0, and writes the logs of all hosts to a new folder, until training ends or
# the connection breaks.
shown=0 # lines
follow_logs() {
  local folder slice viewer writers=() everywhere=()
  folder=$logs/$(date +%Y-%m-%dT%H-%M-%S)
  for ((slice = 0; slice < slices; slice++)); do
    ((slices == 1)) || everywhere=("--node=$slice")
    run mkdir -p "$folder/slice_$slice"
    on all "$follow" --output-directory="$folder/slice_$slice" &
    writers+=($!)
  done
  touch "$folder/slice_0/0.log"
  tail -n "+$((shown + 1))" -f "$folder/slice_0/0.log" &
  viewer=$!
  wait "${writers[@]}" || true
  sleep 1.5 # tail looks once a second
  kill "$viewer" && wait "$viewer" || true
  shown=$(wc -l <"$folder/slice_0/0.log")
}

# The following runs on the hosts, and uses their variables. train/ contains the log, the exit
# status, and a lock that is held while training runs.
extras=tpu
[[ ${flags[*]} != *=gs://* ]] || extras+=,gcs
[[ ${flags[*]} != *=s3://* ]] || extras+=,s3
# shellcheck disable=SC2016
install='set -e
mkdir -p nvae_jax train
tar -xzf nvae_jax.tar.gz -C nvae_jax
if [ ! -x venv/bin/python ]; then
  if python3 -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null
  then python3 -m venv venv
  else # uv installs a newer Python
    curl -LsSf https://astral.sh/uv/install.sh | sh
    ~/.local/bin/uv venv --seed --python=3.12 venv
  fi
fi
cd nvae_jax && ../venv/bin/pip install --quiet ".['"$extras"']"'

train="../venv/bin/python -u launch/train.py $(printf '%q ' "${flags[@]}")"
# shellcheck disable=SC2016
start='cd nvae_jax
flock --nonblock ../train/lock rm -f ../train/status || exit 0 # already running
ulimit -c 0
nohup flock --close ../train/lock sh -c '"$(quote "$train; echo \$? > ../train/status")"'>> ../train/log 2>&1 < /dev/null &
echo $! > ../train/pid'
# shellcheck disable=SC2016
follow='tail --lines=+1 --follow=name --pid="$(cat train/pid)" train/log'
# shellcheck disable=SC2016
status='if [ -f train/status ]; then echo "status $(cat train/status)"
elif [ -d train ] && ! flock --nonblock train/lock true; then echo "status running"
else echo "status lost"; fi'

# shellcheck disable=SC2016
complaints='grep -E "^error: |Error: " train/log | tail -n 1'
where_it_stands="$(declare -f progress_of); PYTHON=../venv/bin/python; cd nvae_jax && progress_of $(printf %q "$workdir")"

# A preempted slice loses its disks.
refuse_own_disk() {
  local answer
  # shellcheck disable=SC2016
  answer=$(on 0 "cd nvae_jax; folder=$(printf %q "$workdir")"'
until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
[ "$(stat -c %d "$folder")" != "$(stat -c %d /)" ] || echo "its own disk"') || return
  [[ $answer != *"its own disk"* ]] ||
    die "--workdir=$workdir is on the host's own disk, which is deleted with the slice: mount a" \
      "file system that outlives it (--setup)"
}

copy_and_start() {
  local archive=$scratch/nvae_jax.tar.gz
  # Joined with &&, because `set -e` does not apply to a function whose status is tested.
  run tar -czf "$archive" -C "$root" configs launch nvae_jax \
      pyproject.toml setup.py README.md LICENSE &&
    run gcloud compute tpus "$kind" scp "$archive" "$name:nvae_jax.tar.gz" "${place[@]}" \
      --worker=all ${everywhere[@]+"${everywhere[@]}"} &&
    on all "$setup" &&
    on all "$install" &&
    { [[ -z $spot || -n $dry_run ]] || is_bucket "$workdir" || refuse_own_disk; } &&
    on all "$start"
}

# Prints the outcome on all hosts: trained, running, failed, lost (with the slice), or aborted.
outcome() {
  local answers
  answers=$(on all "$status" 2>/dev/null | sed -n 's/^status //p') || true
  if [[ -z $answers ]]; then
    echo lost
  elif grep -qx running <<<"$answers"; then
    echo running
  elif ! grep -qvx 0 <<<"$answers"; then
    echo trained
  elif grep -qx 2 <<<"$answers"; then
    echo failed # one refused its input, whatever happened to the others
  elif grep -qxE 'lost|143' <<<"$answers"; then
    echo lost # without a status, or terminated
  elif grep -qxE '1(2[89]|[3-9][0-9])|2[0-9][0-9]' <<<"$answers"; then
    echo aborted # by a signal, or by jax after another host was lost
  else
    echo failed
  fi
}

if [[ -n $dry_run ]]; then
  scratch=/tmp
  echo "# if the slice does not exist yet:"
  create
  echo "# until READY, or ACTIVE:"
  if ((slices == 1)); then
    run gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format="value(state)"
  else
    run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
      --format="value(state.state)"
  fi
  copy_and_start
  on all "$follow" --output-directory="$logs"
  on all "$status"
  echo "# after preemption, before the commands above are repeated:"
  remove
  exit 0
fi
command -v gcloud >/dev/null || die "gcloud is not installed; --dry-run prints the commands"
mkdir -p "$logs" 2>/dev/null && [[ -w $logs ]] || die "--logs=$logs is not a writable folder"
scratch=$(mktemp -d)
# shellcheck disable=SC2046 # one word per process
trap 'rm -rf "$scratch" && kill $(jobs -p) 2>/dev/null || true' EXIT

attempt=0 failures=0 stood=''
while :; do
  wait_for_slice
  if [[ $(outcome) == running ]]; then
    say "already training"
  elif copy_and_start; then
    failures=0
  else
    # A host can refuse connections right after its start, and can be lost later.
    ((++failures < 5)) || die "the code cannot be installed on $name"
    sleep "$seconds"
    continue
  fi
  while :; do
    follow_logs
    result=$(outcome)
    [[ $result == running ]] || break
    sleep "$seconds" # the connection broke, or other hosts are still running
  done
  case $result in
    trained) break ;;
    failed)
      on all "$complaints" >&2 || true
      die "training failed; see the logs of all hosts in $logs"
      ;;
    aborted)
      stands=$(on 0 "$where_it_stands") || true
      count_fruitless "$stood" "$stands"
      ((fruitless < MOST_FRUITLESS)) ||
        die "failed $((fruitless + 1)) times in a row without a step; see the logs in $logs"
      stood=$stands
      ;;
  esac
  ((++attempt <= restarts)) || die "gave up after $restarts restarts"
  say "a host or the slice was lost: resuming"
  sleep "$seconds"
done
say "training is complete; the logs of all hosts are in $logs"
if [[ -n $delete ]]; then remove; else say "the slice $name still exists, and costs money"; fi
