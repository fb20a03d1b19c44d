#!/usr/bin/env bash
# The pod in small: runs a command as N processes of one cluster, on this machine's CPU.
set -euo pipefail

usage() {
  cat <<'END'
launch/local_cluster.sh N [--devices-per-process=K] [--grace=SECONDS] [--dry-run] -- COMMAND...

Runs COMMAND as N processes that train as one, with K fake CPU devices each (default 1):

  launch/local_cluster.sh 2 --devices-per-process=4 -- \
    python launch/train.py --config=configs/digits.py --workdir=/tmp/run

Lines are marked with the process they come from. SIGINT and SIGTERM go to all processes. When one
fails, the others have SECONDS (default 30) to end before they are killed. The exit status is 0, or
that of the first process that failed.

  --dry-run  print the commands instead
END
}

die() {
  echo "error: $*" >&2
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

count='' devices=1 grace=30 dry_run=''
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --devices-per-process=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --) shift && break ;;
    -*) die "unknown option $1; see --help" ;;
    *)
      [[ -z $count ]] || die "unexpected argument $1: COMMAND comes after --"
      count=$1
      ;;
  esac
  shift
done
positive='^[1-9][0-9]*$'
[[ $count =~ $positive ]] || die "N must be a number of processes, not '$count'; see --help"
[[ $devices =~ $positive ]] || die "--devices-per-process must be a positive number, not '$devices'"
[[ $grace =~ ^[0-9]+$ ]] || die "--grace must be a number of seconds, not '$grace'"
(($#)) || die "no COMMAND after --; see --help"

# Below the ports that systems give to outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

mark_lines() {
  local line
  trap '' INT TERM # what a process says after a signal matters
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

port=$(free_port)
environment=(
  "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
  "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
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

pids=()
# Job control gives each process a group of its own and leaves it able to receive SIGINT.
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
  # After a signal all processes end with a status that is not 0, once they have saved.
  if [[ -n $deadline && -z $signalled ]] && ((${#running[@]} && SECONDS >= deadline)); then
    echo "processes ${running[*]} still run $grace s later: killing them" >&2
    send KILL
  fi
  sleep 0.1 || true # Ctrl-C ends it
done
wait # for the last lines to be written
exit "$status"
