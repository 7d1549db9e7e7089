#!/usr/bin/env bash
# launch/tpu_pod.sh calls this script on every host of a TPU, in the copy in ~/jaxsplit.
#
#   tpu_host.sh install NFS SHARE PYTHON
#   tpu_host.sh run NFS SHARE [flags of main.py]
#   tpu_host.sh logs
#   tpu_host.sh stop
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

log=$HOME/jaxsplit.log
pid_file=$HOME/jaxsplit.pid
host=$(hostname)

running() {
  [[ -s $pid_file ]] && kill -0 "$(<"$pid_file")" 2>/dev/null
}

mount_share() {
  local nfs=$1 share=$2
  if [[ $nfs == none ]] || mountpoint -q "$share"; then return; fi
  sudo mkdir -p "$share"
  sudo mount -t nfs "$nfs" "$share"
  sudo chmod a+rwx "$share"
}

install_here() {
  local nfs=$1 share=$2 python=$3
  # A new host first upgrades itself, so wait for its locks. apt itself does not wait for the lock of
  # its package lists; the loop does.
  local apt=(sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=900) tries=90
  until "${apt[@]}" update; do
    ((--tries)) || exit 1
    sleep 10
  done
  "${apt[@]}" install -y nfs-common python3-venv
  mount_share "$nfs" "$share"
  # The Python of the image may be too old; uv installs the requested version.
  python3 -m venv "$HOME/.jaxsplit-uv"
  "$HOME/.jaxsplit-uv/bin/python" -m pip install --quiet uv
  "$HOME/.jaxsplit-uv/bin/uv" venv --quiet --clear --python "$python" .venv
  "$HOME/.jaxsplit-uv/bin/uv" pip install --quiet -r requirements-tpu.txt
  touch .venv/.installed
  echo "$host: installed, $(.venv/bin/python --version)"
}

run_here() {
  local nfs=$1 share=$2
  shift 2
  if running; then
    echo "error: $host: process $(<"$pid_file") is still running; launch/tpu_pod.sh stop ends it" >&2
    exit 1
  fi
  mount_share "$nfs" "$share"
  [[ ! -e $log ]] || mv -- "$log" "$log.old"
  # The run has a session of its own, so it outlives the connection. The shell around it ignores the
  # SIGTERM of a preemption and waits for the status of the run; 75 means that it has saved.
  # shellcheck disable=SC2016
  setsid bash -c 'trap : TERM; "$@"; echo "exit status $?"' jaxsplit \
    .venv/bin/python main.py "$@" >"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  echo "$host: started as process $!"
}

case ${1:-} in
  install) install_here "${@:2}" ;;
  run) run_here "${@:2}" ;;
  logs) exec tail -n +1 --pid="$(<"$pid_file")" -F "$log" ;;
  stop)
    if running; then
      kill -TERM -- "-$(<"$pid_file")"
      echo "$host: told to save and end"
    else
      echo "$host: nothing is running"
    fi
    ;;
  *)
    echo "error: ${1:-}: must be install, run, logs or stop" >&2
    exit 2
    ;;
esac
