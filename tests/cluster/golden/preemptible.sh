#!/bin/bash

# Parameters
#SBATCH --array=0-23%16
#SBATCH --cpus-per-task=32
#SBATCH --gres=gpu:4
#SBATCH --job-name=table2
#SBATCH --mem=196608MB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/table2/jobs/%A_%a_0_log.out
#SBATCH --partition=scavenge
#SBATCH --qos=scavenger
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=720
#SBATCH --wckey=submitit

# setup
trap : TERM USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/runs/table2/jobs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=32 apptainer exec --nv --bind /scratch /shared/images/fusionseg.sif python3 -u -m submitit.core._submit /scratch/runs/table2/jobs


# teardown
status=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}
if rm /scratch/runs/table2/jobs/requeue-"$job" 2>/dev/null; then
  shown=$(scontrol --oneliner show job "$job")
  if [[ $shown == *JobState=RUNNING* || $shown == *PreemptTime=2* ]]; then scontrol requeue "$job"; fi
fi
exit $status