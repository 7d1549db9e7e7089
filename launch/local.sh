#!/usr/bin/env bash
# Runs N processes of main.py on this machine, as on N hosts. See docs/launch/local.md.
set -uo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh [--dry-run] N --config=... --workdir=... [more flags of main.py]

Each line of output begins with the number of its process. Ctrl-C and SIGTERM reach every process
once. When a process fails, the others are stopped; the exit status is that of the first failure.

Variables, with their defaults in parentheses:
  PYTHON      the Python to run (.venv/bin/python of the clone, else python3)
  PORT        the port of the coordinator (a free one)
  GPUS        number of GPUs of each process (none: the processes compute on the CPU)
  STOP_AFTER  seconds from SIGTERM to SIGKILL for the others when a process has failed (10)
  SAVE_WITHIN seconds for the others to save when a signal has stopped a process (120)
TEXT
}

die() {
  echo "error: $*" >&2
  exit 2
}

(( BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404 )) || die "bash $BASH_VERSION: must be 4.4 or newer"

dry_run=
while [[ ${1:-} == --dry-run || ${1:-} == -h || ${1:-} == --help ]]; do
  [[ $1 == --dry-run ]] || { usage; exit 0; }
  dry_run=yes
  shift
done
(( $# )) || { usage >&2; exit 2; }
count=$1
shift
[[ $count =~ ^[1-9][0-9]{0,2}$ ]] || die "N=$count: must be a number of processes from 1 to 999"
gpus=${GPUS:-}
[[ $gpus =~ ^([1-9][0-9]?)?$ ]] || die "GPUS=$gpus: must be a number of GPUs for each process"
for name in STOP_AFTER SAVE_WITHIN; do
  [[ ${!name:-1} =~ ^[0-9]+$ ]] || die "$name=${!name}: must be whole seconds"
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
port=${PORT:-}
if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])') || die "PYTHON=$python: cannot be run"
fi
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] || die "PORT=$port: must be a port"

# Sets `environment` and `command` for process $1.
describe() {
  environment=("JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}")
  if [[ -n $gpus ]]; then
    local devices=$(( $1 * gpus )) i
    for (( i = $1 * gpus + 1; i < ($1 + 1) * gpus; i++ )); do devices+=,$i; done
    environment=("JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}" "CUDA_VISIBLE_DEVICES=$devices")
  fi
  command=("$python" "$root/main.py" "--coordinator=127.0.0.1:$port"
    "--num_processes=$count" "--process_id=$1" "${@:2}")
}

if [[ -n $dry_run ]]; then
  for (( i = 0; i < count; i++ )); do
    describe "$i" "$@"
    words=()
    for word in "${environment[@]}" "${command[@]}"; do
      [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
      words+=("$word")
    done
    echo "${words[*]}"
  done
  exit 0
fi

pipes=$(mktemp -d) || exit 1
trap 'rm -rf -- "$pipes"' EXIT
# Every process has a process group of its own, so Ctrl-C in the terminal reaches this script only,
# which passes it on. If both reached a process, the second would stop it without saving.
set -m
pids=() printers=()
pass_on() {
  local pid
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null; done
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on HUP' HUP

for (( i = 0; i < count; i++ )); do
  mkfifo "$pipes/$i" || exit 1
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$i" "$line"; done <"$pipes/$i" &
  printers+=($!)
  describe "$i" "$@"
  env "${environment[@]}" "${command[@]}" </dev/null >"$pipes/$i" 2>&1 &
  pids+=($!)
done

status=0
first= # the first process that ended with a status other than 0
timer= # a sleep that ends when the others must have ended
limit=
running=$count
ended=()
while (( running )); do
  wait -n 2>/dev/null
  for (( i = 0; i < count; i++ )); do
    [[ -n ${ended[i]:-} ]] && continue
    kill -0 "${pids[i]}" 2>/dev/null && continue
    wait "${pids[i]}" 2>/dev/null
    ended[i]=$?
    running=$(( running - 1 ))
    if (( ended[i] == 0 )) || [[ -n $first ]]; then continue; fi
    first=$i
    status=${ended[i]}
    (( running )) || continue
    case $status in
      75 | 130) limit=${SAVE_WITHIN:-120} ;; # stopped by a signal: the others are saving as well
      *)
        limit=${STOP_AFTER:-10}
        echo "local.sh: process $i ended with status $status; stopping the others" >&2
        pass_on TERM
        ;;
    esac
    sleep "$limit" &
    timer=$!
  done
  if [[ -n $timer ]] && ! kill -0 "$timer" 2>/dev/null && (( running )); then
    echo "local.sh: not ended after $limit s; killing the others" >&2
    pass_on KILL
    timer=
  fi
done
if [[ -n $timer ]]; then
  kill "$timer" 2>/dev/null
  wait "$timer" 2>/dev/null
fi
wait "${printers[@]}" 2>/dev/null # until the last lines are printed
[[ -z $first ]] || echo "local.sh: process $first was the first to stop: status $status" >&2
exit "$status"
