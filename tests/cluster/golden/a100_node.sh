#!/bin/bash

# Parameters
#SBATCH --account=my_project
#SBATCH --array=0-23%2
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:8
#SBATCH --job-name=table2
#SBATCH --mem=819200MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/table2/jobs/%A_%a_0_log.out
#SBATCH --partition=a100
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=2880
#SBATCH --wckey=submitit

# setup
trap : TERM USR2
set -e
module load cuda
source $HOME/venvs/fusionseg/bin/activate
set +e
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/runs/table2/jobs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=12 python -u -m submitit.core._submit /scratch/runs/table2/jobs


# teardown
status=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}
if rm /scratch/runs/table2/jobs/requeue-"$job" 2>/dev/null; then
  shown=$(scontrol --oneliner show job "$job")
  if [[ $shown == *JobState=RUNNING* || $shown == *PreemptTime=2* ]]; then scontrol requeue "$job"; fi
fi
exit $status