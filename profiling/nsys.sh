#!/usr/bin/env bash
# Nsight Systems around a training: a report, and its SQLite export, of each chosen rank; the other ranks run plain.
#
#   bash profiling/nsys.sh python -m fusionseg.train --config configs/demo.yaml data.root=demo/data \
#       profile.steps=[20,30] profile.with=nsys
#   torchrun --no-python --nproc_per_node=4 profiling/nsys.sh python -m fusionseg.train --config ... profile.with=nsys ...
#   srun profiling/nsys.sh python -m fusionseg.train --config ... profile.with=nsys ...          (profiling/nsys.sbatch)
#
# RANKS=0 (default), RANKS=0,3 or RANKS=all; the rank is torchrun's, srun's or Open MPI's. OUTPUT=profile is the folder;
# nsys_rank0_<host>.nsys-rep and .sqlite appear there: `python profiling/report.py <folder>` reads them. With
# OUTPUT=<run folder>/profile, `python profiling/report.py <run folder>` does.
# Only the window of steps is held, between cudaProfilerStart and cudaProfilerStop: without profile.with=nsys nothing is, and
# of other ranks than 0 only with profile.ranks=all.
# CAPTURE=all holds the program from its start to its end (long, and large). TRACE=cuda,nvtx is what is traced,
# NSYS_OPTIONS are further options, such as "--gpu-metrics-devices=0".
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
ranks=${RANKS:-0}
[[ $ranks =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || { echo "nsys.sh: RANKS=$ranks: is all, or ranks such as 0 or 0,3" >&2; exit 2; }
[ "$ranks" = all ] || [[ ,$ranks, == *,$rank,* ]] || exec "$@"
command -v nsys >/dev/null || {
  echo "nsys.sh: nsys is not on PATH: load or install Nsight Systems (module load cuda, or nsight-systems)," \
    "or profile with torch: profile.with=torch" >&2
  exit 2
}
case ${CAPTURE:-window} in
  # stop: the training goes on after the window; by default nsys would end it
  window) capture=(--capture-range=cudaProfilerApi --capture-range-end=stop) ;;
  all) capture=() ;;
  *) echo "nsys.sh: CAPTURE=$CAPTURE: is window or all" >&2; exit 2 ;;
esac
output=${OUTPUT:-profile}
mkdir -p "$output"
read -ra options <<< "${NSYS_OPTIONS:-}"
exec nsys profile --trace="${TRACE:-cuda,nvtx}" --sample=none --cpuctxsw=none --export=sqlite \
  --force-overwrite=true --output="$output/nsys_rank${rank}_$(hostname -s)" \
  ${capture[@]+"${capture[@]}"} ${options[@]+"${options[@]}"} "$@"
