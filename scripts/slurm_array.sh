#!/usr/bin/env bash
# The runs of a sweep as an array of Slurm, one share of them for each task; flags go to main.py, which takes the share:
#
#     sbatch --array=1-15 --gres=gpu:1 --cpus-per-task=8 --time=4:00:00 scripts/slurm_array.sh --dataset mvtec --class all
#
# Submit from the folder of main.py. Partition, account, GPU, cores and time are the user's, on the command line of
# sbatch, which goes before the lines below. The same command again finishes what is left, whatever the --array.
# A task that is preempted, that runs out of time, or whose node is lost, is queued again and goes on from the last
# resume points of its runs. A task with a run that failed ends with exit code 1 and is not queued again.
#SBATCH --job-name=sweep
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
#SBATCH --ntasks=1
#SBATCH --signal=B:USR1@120
set -euo pipefail
most=20  # restarts of a task, after which it is not queued again by itself: its time may be too short for one epoch

[[ -f main.py ]] || cd "$(dirname "$0")/.."  # under Slurm "$0" is a copy elsewhere
if [[ ! -f main.py ]]; then
    echo "error: $OLDPWD: no main.py there: sbatch from its folder, or with --chdir" >&2
    exit 2
elif [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "error: no task of an array: give sbatch --array=1-N, for N tasks" >&2
    exit 2
fi
restarts="${SLURM_RESTART_COUNT:-0}"
# Queued again, it goes on even with flags that discard. A lock of its own former process on a lost node expires: --wait.
again=()
((restarts == 0)) || again=(--fresh 0 --resume 1 --wait 1)
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"

queue_again() {  # near the end of its time, and where the cluster says so when it is preempted
    kill -TERM "$child" || true
    code=0
    wait "$child" || code=$?
    if ((code == 143)) && ((restarts < most)); then  # 143: by that signal
        echo "out of time, or preempted: queued again"
        scontrol requeue "$SLURM_JOB_ID"
    elif ((code == 143)); then
        echo "error: not queued again after $restarts restarts: give more --time; the same command goes on" >&2
    fi
    exit "$code"
}

# Slurm's warning comes to this shell alone; its SIGTERM comes to main.py as well, whose end is waited for.
trap queue_again USR1
trap 'wait "$child" || true; exit 143' TERM
"${PYTHON:-python}" main.py "$@" --shard auto "${again[@]}" &
child=$!
wait "$child"
