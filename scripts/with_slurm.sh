#!/usr/bin/env bash
# Run a command beside a Slurm of its own, one node of two processors, which SLURM_CONF names:
#   scripts/with_slurm.sh .venv/bin/python -m pytest tests/launching
# Debian's package is installed where it is missing and that is allowed. Without it, or where it cannot be started, the command
# runs all the same, and the test that needs Slurm says why it is skipped. All files are in a temporary folder; at the end the
# daemons are stopped and the folder is removed. A Slurm that this machine already belongs to is used as it is.
set -u
export PATH="$PATH:/usr/sbin:/sbin"
has_slurm() { command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; }
timeout 20 sinfo >/dev/null 2>&1 && exec "$@"
if ! has_slurm && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null
fi
has_slurm || { echo "No Slurm here: its test will be skipped. Debian's: apt-get install slurm-wlm munge"; exec "$@"; }

folder=$(mktemp -d)
user=$(id -un)
host=$(hostname -s 2>/dev/null || echo localhost)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cat >"$folder/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
mkdir "$folder/state" "$folder/spool"
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
chmod 755 "$folder"

pids=()
stop() {
  [ -n "${SLURM_CONF:-}" ] && timeout 10 scancel --user="$user" >/dev/null 2>&1
  [ ${#pids[@]} -gt 0 ] && kill "${pids[@]}" 2>/dev/null
  wait
  rm -rf "$folder"
}
trap stop EXIT
start() { # NAME COMMAND...
  local name=$1
  shift
  "$@" >"$folder/$name.out" 2>&1 &
  pids+=($!)
}
export SLURM_CONF="$folder/slurm.conf"
start munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done
start slurmctld slurmctld -D -i
slurmctld=$!
# Containers often have no cgroups to write to. Slurm 22.05 does not know `disabled`: its slurmd ends at once, and the next
# plugin is tried.
state=""
deadline=$((SECONDS + 45))
alive() { [ $SECONDS -lt $deadline ] && [ -S "$folder/munge.socket" ] && kill -0 "$1" 2>/dev/null; }
for plugin in disabled cgroup/v1 autodetect; do
  alive $slurmctld || break
  echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
  start slurmd slurmd -D -N "$host"
  slurmd=$!
  while true; do
    state=$(timeout 5 sinfo --noheader --format=%T 2>/dev/null)
    [ "$state" = idle ] && break 2
    alive $slurmctld && alive $slurmd || break
    sleep 0.5
  done
  kill $slurmd 2>/dev/null
done
if [ "$state" != idle ]; then
  echo "Slurm does not start here (its node is ${state:-unknown}): its test will be skipped. The ends of the logs:"
  tail -n 4 "$folder"/*.log "$folder"/*.out
  stop
  trap - EXIT
  unset SLURM_CONF
  exec "$@"
fi
"$@"
