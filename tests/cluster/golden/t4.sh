#!/bin/bash

# Parameters
#SBATCH --array=0-23%8
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:t4:1
#SBATCH --job-name=table2
#SBATCH --mem=24576MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/table2/jobs/%A_%a_0_log.out
#SBATCH --partition=t4
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
trap : TERM USR2
set -e
source $HOME/venvs/fusionseg/bin/activate
set +e

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/runs/table2/jobs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 python -u -m submitit.core._submit /scratch/runs/table2/jobs


# teardown
status=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}
if rm /scratch/runs/table2/jobs/requeue-"$job" 2>/dev/null; then
  shown=$(scontrol --oneliner show job "$job")
  if [[ $shown == *JobState=RUNNING* || $shown == *PreemptTime=2* ]]; then scontrol requeue "$job"; fi
fi
exit $status