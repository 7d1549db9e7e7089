#!/usr/bin/env bash
# Runs jaxsplit on Cloud TPU VMs, from request to deletion. See docs/launch/tpu_pod.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [--dry-run] COMMAND [flags of main.py, for run and resume]

  create   request the TPU VMs (a queued resource) and wait until they are active
  install  send the clone's last commit to all hosts, mount the share, install requirements-tpu.txt
  run      start main.py on all hosts; it keeps running when this command ends
  logs     print the output of a host until its process ends
  stop     let the run save and end
  status   print the state of the queued resource
  resume   after a preemption delete, create and install again as far as needed, then run
  delete   delete the TPU VMs, but not the share

Required variables:
  PROJECT, ZONE     project and zone in Google Cloud
  NFS               for install, run, resume: HOST:/PATH that all hosts mount; none: SHARE is mounted
  CONFIG            for run: a file of configs/ with its arguments; for resume only if the workdir
                    has no config yet
Optional variables, with their defaults in parentheses:
  NAME              name of the queued resource and its TPU VM (jaxsplit)
  ACCELERATOR       type and size, up to v6e (v6e-16)
  RUNTIME           version of the TPU software (that of ACCELERATOR)
  SPOT              yes: cheaper, may be preempted (no)
  VALID_UNTIL       time after which the request is given up, such as 6h (never)
  NETWORK, SUBNETWORK, SERVICE_ACCOUNT  for the hosts (the project's defaults)
  CREATE_FLAGS      further flags of `queued-resources create`
  SHARE             folder where NFS is mounted (/mnt/jaxsplit)
  WORKDIR           workdir of the run (SHARE/runs/NAME)
  PYTHON            Python version for the hosts, 3.11 or newer (3.12)
  WORKER            number of the host whose output `logs` prints (0)
  POLL              seconds between two queries of a state (30)
  ARCHIVE           file that `install` packs the commit into (TMPDIR/jaxsplit-NAME.tar.gz)
  GCLOUD            the gcloud command (gcloud)
  SSH_FLAGS         further flags of `tpu-vm ssh` and `scp`
TEXT
}

die() {
  echo "error: $*" >&2
  exit 2
}

(( BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404 )) || die "bash $BASH_VERSION: must be 4.4 or newer"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

dry_run=
while [[ ${1:-} == --dry-run || ${1:-} == -h || ${1:-} == --help ]]; do
  [[ $1 == --dry-run ]] || { usage; exit 0; }
  dry_run=yes
  shift
done
action=${1:-}
case $action in
  run | resume) shift ;;
  create | install | logs | stop | status | delete)
    shift
    (( $# == 0 )) || die "$1: $action takes no flags"
    ;;
  '') usage >&2; exit 2 ;;
  *) die "$action: must be one of create, install, run, logs, stop, status, resume, delete" ;;
esac

need() {
  local name
  for name in "$@"; do [[ -n ${!name:-} ]] || die "$name: must be set for $action"; done
}
need PROJECT ZONE
[[ $action != run ]] || need CONFIG
case $action in install | run | resume) need NFS ;; esac
[[ ${NFS:-none} == none || $NFS == ?*:/* ]] || die "NFS=$NFS: must be HOST:/PATH or none"

name=${NAME:-jaxsplit}
accelerator=${ACCELERATOR:-v6e-16}
share=${SHARE:-/mnt/jaxsplit}
workdir=${WORKDIR:-$share/runs/$name}
archive=${ARCHIVE:-${TMPDIR:-/tmp}/jaxsplit-$name.tar.gz}
poll=${POLL:-30}
case $accelerator in
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  *) die "ACCELERATOR=$accelerator: must be v2, v3, v4, v5litepod, v5p or v6e, - and a size;" \
    "newer TPUs come through GKE (docs/launch/gke.md)" ;;
esac
runtime=${RUNTIME:-$runtime}
[[ ${SPOT:-no} == yes || ${SPOT:-no} == no ]] || die "SPOT=$SPOT: must be yes or no"

read -ra gcloud <<<"${GCLOUD:-gcloud} compute tpus"
read -ra ssh_flags <<<"${SSH_FLAGS:-}"
read -ra create_flags <<<"${CREATE_FLAGS:-}"
where=("--project=$PROJECT" "--zone=$ZONE")

# Prints words as shell input, with quotes only where they are needed.
quoted() {
  local word flag out=()
  for word in "$@"; do
    flag=
    [[ ! $word =~ ^--[a-z-]+= ]] || flag=${BASH_REMATCH[0]}
    word=${word#"$flag"}
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    out+=("$flag$word")
  done
  echo "${out[*]}"
}

# Runs a command, or prints it in a dry run.
do_it() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# on_hosts WORKER COMMAND: runs a shell command on host WORKER, or on all hosts.
on_hosts() {
  do_it "${gcloud[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "${ssh_flags[@]}" \
    "--command=$2"
}

describe() {
  do_it "${gcloud[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
}

# Prints the state of the queued resource in one word; NONE: it does not exist.
state_now() {
  local said errors
  errors=$(mktemp)
  if said=$(describe 2>"$errors"); then
    echo "${said:-UNKNOWN}"
  elif grep -qi 'not_found\|not found' "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    rm -f -- "$errors"
    return 1
  fi
  rm -f -- "$errors"
}

wait_until_active() {
  local state last='' failed=0
  if [[ -n $dry_run ]]; then
    describe
    return
  fi
  while true; do
    if ! state=$(state_now); then # a failed query must not end a wait of days
      ((++failed < 10)) || exit 1
      sleep "$poll"
      continue
    fi
    failed=0
    [[ $state == "$last" ]] || echo "$name: $state"
    last=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING | NONE)
        echo "error: the queued resource $name is $state; launch/tpu_pod.sh delete removes it" >&2
        exit 1
        ;;
    esac
    sleep "$poll"
  done
}

create() {
  local flags=("--accelerator-type=$accelerator" "--runtime-version=$runtime")
  [[ ${SPOT:-no} == no ]] || flags+=(--spot)
  [[ -z ${VALID_UNTIL:-} ]] || flags+=("--valid-until-duration=$VALID_UNTIL")
  [[ -z ${NETWORK:-} ]] || flags+=("--network=$NETWORK")
  [[ -z ${SUBNETWORK:-} ]] || flags+=("--subnetwork=$SUBNETWORK")
  [[ -z ${SERVICE_ACCOUNT:-} ]] || flags+=("--service-account=$SERVICE_ACCOUNT")
  do_it "${gcloud[@]}" queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "${flags[@]}" "${create_flags[@]}"
  wait_until_active
}

install_all() {
  [[ -n $dry_run || -z $(git status --porcelain) ]] ||
    echo "note: changes that are not committed are not sent" >&2
  do_it git archive --format=tar.gz --prefix=jaxsplit/ "--output=$archive" HEAD
  do_it "${gcloud[@]}" tpu-vm scp "$archive" "$name:jaxsplit.tar.gz" "${where[@]}" --worker=all \
    "${ssh_flags[@]}"
  on_hosts all "tar -xzf jaxsplit.tar.gz && $(
    quoted jaxsplit/launch/tpu_host.sh install "$NFS" "$share" "${PYTHON:-3.12}"
  )"
}

run_all() {
  local flags=("--workdir=$workdir")
  [[ -z ${CONFIG:-} ]] || flags=("--config=$CONFIG" "${flags[@]}")
  on_hosts all "$(quoted jaxsplit/launch/tpu_host.sh run "$NFS" "$share" "${flags[@]}" "$@")"
}

delete() {
  do_it "${gcloud[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

resume() {
  local state=SUSPENDED # a dry run shows the case with the most commands
  [[ -n $dry_run ]] || state=$(state_now)
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    echo "$name: $state"
    sleep "$poll"
    state=$(state_now)
  done
  case $state in
    ACTIVE)
      on_hosts all "test -e jaxsplit/.venv/.installed" || install_all
      run_all "$@"
      return
      ;;
    SUSPENDED | FAILED)
      delete
      create
      ;;
    NONE) create ;;
    *) wait_until_active ;;
  esac
  install_all
  run_all "$@"
}

case $action in
  create) create ;;
  install) install_all ;;
  run) run_all "$@" ;;
  logs) on_hosts "${WORKER:-0}" "jaxsplit/launch/tpu_host.sh logs" ;;
  stop) on_hosts all "jaxsplit/launch/tpu_host.sh stop" ;;
  status) describe ;;
  resume) resume "$@" ;;
  delete) delete ;;
esac
