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
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  export MASTER_ADDR MASTER_PORT
  echo "$(date --iso-8601=seconds) $stage: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST," \
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
  soaes_wait srun --kill-on-bad-exit=0 --wait=120 "${options[@]}" "$SOAES_PYTHON" \
    -m megatron_soaes.accelerator.health --folder "$folder" \
    --nodes "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ,)" \
    --gpus-per-node "${SLURM_GPUS_PER_NODE:-0}" # those asked for; --exclusive gives all there are
}

# Runs a command with the signals of Slurm passed on to it; ends with its code.
soaes_wait() {
  "$@" &
  local running=$! code
  # shellcheck disable=SC2064  # the process of now
  trap "kill -USR1 $running 2>/dev/null" USR1
  # shellcheck disable=SC2064
  trap "kill -TERM $running 2>/dev/null" TERM
  wait "$running"
  code=$?
  while kill -0 "$running" 2>/dev/null; do # a trapped signal ends `wait` before the command ends
    wait "$running"
    code=$?
  done
  # From here on a signal must not cut short what is left: requeueing sends one itself.
  trap '' USR1 TERM
  return "$code"
}

soaes_end() { # CODE RECIPE
  local code=$1
  case $code in
    4 | 5 | 75) ;;
    *) if [ "$code" -lt 128 ]; then exit "$code"; fi ;;
  esac
  if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" != RUNNING ]; then
    exit "$code" # cancelled, or Slurm itself puts it back
  fi
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$restarts" -ge "${SOAES_MAX_RESTARTS:-20}" ]; then
    echo "exit code $code, and the job was requeued $restarts times already: it ends here" >&2
    exit "$code"
  fi
  echo "exit code $code: job $SLURM_JOB_ID goes back into the queue"
  soaes_requeue "$(dirname "$2")/bad-nodes"
  exit "$code"
}

soaes_requeue() { # BAD_NODES
  if [ ! -s "$1" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    return
  fi
  # Held, so that it cannot start again before it is told which nodes to stay away from.
  local nodes
  nodes=$(cut -f 1 "$1" | sort -u | paste -s -d ,)
  echo "it stays away from $nodes"
  scontrol requeuehold "$SLURM_JOB_ID" &&
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$nodes"
  scontrol release "$SLURM_JOB_ID"
}
