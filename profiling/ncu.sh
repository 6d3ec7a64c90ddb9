#!/usr/bin/env bash
# Nsight Compute around a training: the kernels of chosen phases of one rank, or of all; the other ranks run plain.
#
#   PHASES=forward bash profiling/ncu.sh python -m fusionseg.train --config configs/demo.yaml data.root=demo/data \
#       profile.steps=[20,21] profile.with=nsys train.steps=22 schedule.warmup=20
#   PHASES="swinViT backward" KERNELS=100 SET=full bash profiling/ncu.sh \
#       python -m fusionseg.train ... profile.stages=true
#   torchrun --no-python --nproc_per_node=2 profiling/ncu.sh python -m fusionseg.train ...       (or srun: profiling/ncu.sbatch)
#
# PHASES are names of ranges (default: forward backward; the network's parts have some with profile.stages=true), KERNELS how
# many kernels of them (50), SKIP how many before (0), SET what is measured of each: basic, detailed (default), full, roofline.
# RANKS=0 (default), RANKS=1,2 or RANKS=all: others than 0 have a window only with profile.ranks=all.
# OUTPUT=profile is the folder of ncu_rank0_<host>.ncu-rep, for `ncu --import` or the window program.
# Each kernel runs several times over: the figures are of kernels, not of the training. NCCL's kernels are left out, for one
# rank alone cannot repeat them; other ranks wait meanwhile, so keep KERNELS small. With profile.with=nsys only kernels of its
# window of steps are taken (CAPTURE=all: of all steps, and no window is needed). The training goes on afterwards: set
# train.steps. KERNEL_NAME=regex:gemm chooses kernels by name; NCU_OPTIONS are further options.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
ranks=${RANKS:-0}
[[ $ranks =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || { echo "ncu.sh: RANKS=$ranks: is all, or ranks such as 0 or 0,3" >&2; exit 2; }
[ "$ranks" = all ] || [[ ,$ranks, == *,$rank,* ]] || exec "$@"
command -v ncu >/dev/null || {
  echo "ncu.sh: ncu is not on PATH: load or install Nsight Compute (module load cuda, or nsight-compute)" >&2
  exit 2
}
case ${CAPTURE:-window} in
  window) capture=(--profile-from-start off) ;;
  all) capture=() ;;
  *) echo "ncu.sh: CAPTURE=$CAPTURE: is window or all" >&2; exit 2 ;;
esac
# A phase is a push-pop range (hence the slash) of the domain fusionseg. Its scope is the process: the kernels of `backward`
# are launched by autograd's own thread, which has no ranges.
filters=(--nvtx)
if [[ $(ncu --help 2>/dev/null) == *--nvtx-push-pop-scope* ]]; then filters+=(--nvtx-push-pop-scope process)
else echo "ncu.sh: this ncu knows the ranges of each thread only: of backward it will find no kernels" >&2; fi
read -ra phases <<< "${PHASES:-forward backward}"
for phase in "${phases[@]}"; do filters+=(--nvtx-include "fusionseg@$phase/"); done
output=${OUTPUT:-profile}
mkdir -p "$output"
read -ra options <<< "${NCU_OPTIONS:-}"
exec ncu --set "${SET:-detailed}" --launch-skip "${SKIP:-0}" --launch-count "${KERNELS:-50}" \
  --kernel-name "${KERNEL_NAME:-regex:^(?!nccl)}" --target-processes all --force-overwrite \
  --export "$output/ncu_rank${rank}_$(hostname -s)" \
  "${filters[@]}" ${capture[@]+"${capture[@]}"} ${options[@]+"${options[@]}"} "$@"
