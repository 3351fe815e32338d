# shellcheck shell=bash
# What the jobs of all stages do, around `soaes run --only STAGE`. Sourced by the *.sbatch files.
#
# What ends a job, and what follows (docs/exit-codes.md):
#   0           done                            those that wait for it start
#   75          stopped by a signal, saved      requeued: goes on from there
#   4, 128+N    hung, or killed                 requeued: goes on from the last checkpoint
#   5           a node is not sound             requeued without that node
#   any other   nothing a restart would mend    the job fails; those that wait for it are cancelled
set -uo pipefail

# The number of this job; an element of an array has one of its own, which alone is meant by it.
SOAES_JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SOAES_JOB=${SOAES_JOB:-$SLURM_JOB_ID}

# A signal goes on to what runs at that moment; after one that comes before, nothing starts.
soaes_running='' soaes_received=''
soaes_pass_on() { # SIGNAL
  soaes_received=$1
  if [ -n "$soaes_running" ]; then kill -s "$1" "$soaes_running" 2>/dev/null; fi
}
trap 'soaes_pass_on USR1' USR1
trap 'soaes_pass_on TERM' TERM

# The recipe of the jobs lies in WORKDIR/slurm, and so does the list of nodes to stay away from.
soaes_stage() { # RECIPE STAGE [STAGE...]; an array runs the one of its element
  local recipe=$1
  shift
  local stages=("$@")
  local stage=${stages[${SLURM_ARRAY_TASK_ID:-0}]}
  local code=0

  # shellcheck source=/dev/null
  source "$SOAES_ENVIRONMENT"
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # Below the ports that Linux gives to whoever asks; the next one is the node check's.
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 6000 * 2))
  export MASTER_ADDR MASTER_PORT
  # Each task gets its share of the job's CPUs: by itself srun binds it to a single one.
  if [ -n "${SLURM_NTASKS_PER_NODE:-}" ]; then
    local share=$((SLURM_CPUS_ON_NODE / SLURM_NTASKS_PER_NODE))
    export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$share}
  fi
  echo "$(date --iso-8601=seconds) $stage: job $SOAES_JOB on $SLURM_JOB_NODELIST," \
    "start $((${SLURM_RESTART_COUNT:-0} + 1))"

  soaes_check_nodes "$recipe" || code=$?
  if [ "$code" -eq 0 ]; then
    soaes_wait "$SOAES" run "$recipe" --only "$stage" --launcher srun || code=$?
  fi
  soaes_end "$code" "$recipe"
}

# Trains only on nodes that prove sound; other stages are short, or find out by themselves.
soaes_check_nodes() { # RECIPE
  if [ "${SOAES_HEALTH_CHECK:-0}" != 1 ]; then return 0; fi
  local folder
  folder=$(dirname "$1")
  local options=()
  # Written as for a shell, and read like that by xargs.
  if [ -n "${SOAES_SRUN_OPTIONS:-}" ]; then
    mapfile -t options < <(printf '%s' "$SOAES_SRUN_OPTIONS" | xargs -n 1 printf '%s\n')
  fi
  # Those asked for, which may be written KIND:NUMBER; --exclusive gives all there are.
  local gpus=${SLURM_GPUS_PER_NODE:-0}
  soaes_wait srun --kill-on-bad-exit=0 --wait=120 "${options[@]}" "$SOAES_PYTHON" \
    -m megatron_soaes.accelerator.health --folder "$folder" \
    --nodes "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ,)" \
    --gpus-per-node "${gpus##*:}"
}

# Runs a command with the signals of Slurm passed on to it; ends with its code.
soaes_wait() {
  if [ -n "$soaes_received" ]; then return 75; fi
  "$@" &
  soaes_running=$!
  # A trapped signal ends `wait` before the command ends; the last one asks for the code alone.
  while kill -0 "$soaes_running" 2>/dev/null; do wait "$soaes_running"; done
  wait "$soaes_running"
}

soaes_end() { # CODE RECIPE
  local code=$1 state
  # From here on a signal must not cut short what is left: requeueing sends one itself.
  trap '' USR1 TERM
  case $code in
    4 | 5 | 75) ;;
    *) if [ "$code" -lt 128 ]; then exit "$code"; fi ;;
  esac
  state=$(soaes_ask squeue --noheader --jobs "$SOAES_JOB" --format %T)
  if [ "$state" != RUNNING ]; then
    echo "exit code $code, and the job is ${state:-unknown to Slurm}: it is not put back" >&2
    exit "$code" # cancelled, or Slurm itself puts it back
  fi
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$restarts" -ge "${SOAES_MAX_RESTARTS:-20}" ]; then
    echo "exit code $code, and the job was requeued $restarts times already: it ends here" >&2
    exit "$code"
  fi
  echo "exit code $code: job $SOAES_JOB goes back into the queue"
  soaes_requeue "$(dirname "$2")/bad-nodes" ||
    echo "Slurm did not take it back: submit the recipe again, and it goes on" >&2
  exit "$code"
}

soaes_requeue() { # BAD_NODES
  if [ ! -s "$1" ]; then
    soaes_ask scontrol requeue "$SOAES_JOB"
    return
  fi
  # Held, so that it cannot start again before it is told which nodes to stay away from.
  local nodes
  nodes=$(cut -f 1 "$1" | sort -u | paste -s -d ,)
  echo "it stays away from $nodes"
  soaes_ask scontrol requeuehold "$SOAES_JOB" || return
  soaes_ask scontrol update JobId="$SOAES_JOB" ExcNodeList="$nodes"
  soaes_ask scontrol release "$SOAES_JOB"
}

# A controller that is busy is asked again: without an answer the work of days would not go on.
soaes_ask() {
  local attempt
  for attempt in {1..6}; do
    if "$@"; then return; fi
    if [ "$attempt" -lt 6 ]; then sleep 5; fi
  done
  return 1
}
