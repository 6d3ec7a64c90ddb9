#!/usr/bin/env bash
# Profile a training with Nsight Systems: a report and its SQLite export for each chosen rank. Other ranks run unprofiled.
#
#   bash profiling/nsys.sh python -m fusionseg.train --config configs/demo.yaml data.root=demo/data \
#       profile.steps=[20,30] profile.with=nsys
#   torchrun --no-python --nproc_per_node=4 profiling/nsys.sh python -m fusionseg.train --config ... profile.with=nsys ...
#   srun profiling/nsys.sh python -m fusionseg.train --config ... profile.with=nsys ...          (profiling/nsys.sbatch)
#
# Environment variables:
#   RANKS         profiled ranks: 0 (default), a list such as 0,3, or all. The rank is that of torchrun, srun or Open MPI.
#   OUTPUT        folder of nsys_rank0_<host>.nsys-rep and .sqlite (default: profile). `python profiling/report.py <folder>`
#                 reads it. With OUTPUT=<run folder>/profile, `python profiling/report.py <run folder>` finds it.
#   CAPTURE       steps (default): only the steps of profile.steps, between cudaProfilerStart and cudaProfilerStop. This
#                 needs profile.with=nsys, and profile.ranks=all for other ranks than 0.
#                 all: the whole program, which gives long and large reports.
#   TRACE         traced APIs (default: cuda,nvtx).
#   NSYS_OPTIONS  further options of nsys, such as "--gpu-metrics-devices=0".
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
ranks=${RANKS:-0}
[[ $ranks =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || { echo "nsys.sh: RANKS: not a list of ranks (expected all or ranks such as 0 or 0,3, got '$ranks')" >&2; exit 2; }
[ "$ranks" = all ] || [[ ,$ranks, == *,$rank,* ]] || exec "$@"
command -v nsys >/dev/null || {
  echo "nsys.sh: nsys is not on PATH; load or install Nsight Systems (module load cuda, or nsight-systems)," \
    "or use torch's profiler: profile.with=torch" >&2
  exit 2
}
case ${CAPTURE:-steps} in
  # --capture-range-end=stop: the training continues after the profiled steps; by default nsys would end it.
  # "window" is the former name of "steps".
  steps|window) capture=(--capture-range=cudaProfilerApi --capture-range-end=stop) ;;
  all) capture=() ;;
  *) echo "nsys.sh: CAPTURE: unknown value (expected steps or all, got '$CAPTURE')" >&2; exit 2 ;;
esac
output=${OUTPUT:-profile}
mkdir -p "$output"
read -ra options <<< "${NSYS_OPTIONS:-}"
exec nsys profile --trace="${TRACE:-cuda,nvtx}" --sample=none --cpuctxsw=none --export=sqlite \
  --force-overwrite=true --output="$output/nsys_rank${rank}_$(hostname -s)" \
  ${capture[@]+"${capture[@]}"} ${options[@]+"${options[@]}"} "$@"
