#!/usr/bin/env bash
# The runs of a sweep as an array of Slurm, one share of them for each task; flags go to main.py, which takes the share:
#
#     sbatch --array=1-15 --gres=gpu:1 --cpus-per-task=8 --time=4:00:00 scripts/slurm_array.sh --dataset mvtec --class all
#
# Submit from the folder of main.py. Partition, account, GPU, cores and time are the user's, on the command line of
# sbatch, which goes before the lines below. The same command again finishes what is left, whatever the --array.
# A task that is preempted, or whose node is lost, is queued again and goes on from the last resume points of its runs.
# One that runs out of time ends a minute before; one with a run that failed ends with exit code 1: neither is queued
# again by Slurm.
#SBATCH --job-name=sweep
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
#SBATCH --ntasks=1
#SBATCH --signal=B:TERM@60
set -euo pipefail
[[ -f main.py ]] || cd "$(dirname "$0")/.."  # under Slurm "$0" is a copy elsewhere
if [[ ! -f main.py ]]; then
    echo "error: $OLDPWD: no main.py there: sbatch from its folder, or with --chdir" >&2
    exit 2
elif [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "error: no task of an array: give sbatch --array=1-N, for N tasks" >&2
    exit 2
fi
# Queued again, it goes on even with flags that discard. A lock of its own former process on a lost node expires: --wait.
again=()
[[ "${SLURM_RESTART_COUNT:-0}" == 0 ]] || again=(--fresh 0 --resume 1 --wait 1)
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
exec "${PYTHON:-python}" main.py "$@" --shard auto "${again[@]}"  # in place of the shell: it gets the signals
