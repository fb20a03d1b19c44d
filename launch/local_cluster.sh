#!/usr/bin/env bash
# Runs a command as N processes of a cluster on the CPU of this machine, for tests.
set -euo pipefail

usage() {
  cat <<'END'
launch/local_cluster.sh N [--devices-per-process=K] [--grace=SECONDS] [--dry-run] -- COMMAND...

Runs COMMAND as N processes of one cluster, with K simulated CPU devices each (default 1):

  launch/local_cluster.sh 2 --devices-per-process=4 -- \
    python launch/train.py --config=configs/digits.py --workdir=/tmp/run

Each line of output is prefixed with the number of its process. SIGINT and SIGTERM are sent to all
processes. When one fails, the others are killed after SECONDS (default 30). The exit status is 0,
or the status of the first process that failed.

  --dry-run  print the commands instead
END
}

# shellcheck source=launch/launcher.sh
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

count='' devices_per_process=1 grace=30 dry_run='' options=()
while (($#)) && [[ $1 != -- ]]; do options+=("$1") && shift; done
(($#)) && shift # the remaining arguments are COMMAND
# shellcheck disable=SC2329 # called by read_options
take_count() {
  [[ $1 != -* ]] || die "unknown option $1; see --help"
  [[ -z $count ]] || die "unexpected argument $1: COMMAND comes after --"
  count=$1
}
read_options "devices-per-process grace" "dry-run" take_count ${options[@]+"${options[@]}"}
check_number N "$count" 1 256
check_number --devices-per-process "$devices_per_process" 1 256
check_number --grace "$grace" 0 86400
(($#)) || die "no COMMAND after --; see --help"
for word in "$@"; do [[ $word != --*=* ]] || check_paths "$word"; done

# Prints a free port, below the range that systems use for outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Prefixes each line of a process with its number. If process 0 prints nothing for half a minute, prints
# that it is still running.
mark_lines() {
  local line part='' code wait=()
  (($1 || BASH_VERSINFO[0] < 4)) || wait=(-t "${LOCAL_CLUSTER_REPORT_SECONDS:-30}")
  trap '' INT TERM # so that the output after a signal is shown, too
  while :; do
    code=0
    IFS= read -r ${wait[@]+"${wait[@]}"} line || code=$?
    part+=$line # keeps the beginning of an incomplete line
    if ((code > 128)); then
      printf '[%s] ... running for %s s\n' "$1" "$SECONDS"
    elif ((code == 0)) || [[ -n $part ]]; then
      printf '[%s] %s\n' "$1" "$part"
      part=''
    fi
    ((code == 0 || code > 128)) || break
  done
}

port=$(free_port)
environment=(
  "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
  "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices_per_process"
  "JAX_COORDINATOR_ADDRESS=localhost:$port"
  "JAX_NUM_PROCESSES=$count"
)

if [[ -n $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    for word in env "${environment[@]}" "JAX_PROCESS_ID=$i" "$@"; do quote "$word"; done
    echo "&"
  done
  echo wait
  exit 0
fi

say "starting $count processes; each compiles the same programs, which takes longer than with one" \
  "process if there are few cores"
pids=()
# Job control puts each process in its own process group, and does not make it ignore SIGINT.
set -m
for ((i = 0; i < count; i++)); do
  env "${environment[@]}" "JAX_PROCESS_ID=$i" "$@" </dev/null > >(mark_lines "$i") 2>&1 &
  pids+=($!)
done
set +m

signalled=''
send() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}
trap 'signalled=1; send INT' INT
trap 'signalled=1; send TERM' TERM

status=0 deadline=''
running=("${!pids[@]}")
while ((${#running[@]})); do
  still=()
  for i in "${running[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then
      still+=("$i")
      continue
    fi
    code=0
    wait "${pids[i]}" 2>/dev/null || code=$?
    if ((code && !status)); then
      status=$code deadline=$((SECONDS + grace))
      echo "process $i ended with status $code" >&2
    fi
  done
  running=(${still[@]+"${still[@]}"})
  # After a signal, all processes save and end with a nonzero status.
  if [[ -n $deadline && -z $signalled ]] && ((${#running[@]} && SECONDS >= deadline)); then
    echo "processes ${running[*]} are still running after $grace s: killing them" >&2
    send KILL
  fi
  sleep 0.1 || true # Ctrl-C ends it
done
wait # until the last lines are written
exit "$status"
