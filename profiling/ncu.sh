#!/usr/bin/env bash
# Profile single kernels of a training with Nsight Compute, in chosen phases and ranks. Other ranks run unprofiled.
#
#   PHASES=forward bash profiling/ncu.sh python -m fusionseg.train --config configs/demo.yaml data.root=demo/data \
#       profile.steps=[20,21] profile.with=nsys train.steps=22 schedule.warmup=20
#   PHASES="swinViT backward" KERNELS=100 SET=full bash profiling/ncu.sh \
#       python -m fusionseg.train ... profile.stages=true
#   torchrun --no-python --nproc_per_node=2 profiling/ncu.sh python -m fusionseg.train ...       (or srun: profiling/ncu.sbatch)
#
# Environment variables:
#   PHASES       names of ranges (default: forward backward). With profile.stages=true modules of the network are ranges too.
#   KERNELS      number of profiled kernels (default: 50). Keep it small: the other ranks wait meanwhile.
#   SKIP         kernels to skip before them (default: 0).
#   SET          metrics of each kernel: basic, detailed (default), full, roofline.
#   KERNEL_NAME  filter by name, such as regex:gemm (default: all but NCCL's, which a single rank cannot repeat).
#   RANKS        profiled ranks: 0 (default), a list such as 1,2, or all. Other ranks than 0 need profile.ranks=all.
#   OUTPUT       folder of ncu_rank0_<host>.ncu-rep, for `ncu --import` or the program ncu-ui (default: profile).
#   CAPTURE      steps (default): kernels of the steps of profile.steps, which needs profile.with=nsys. all: of all steps.
#   NCU_OPTIONS  further options of ncu.
#
# ncu runs each kernel several times, so the results describe kernels, not the speed of the training. The training continues
# after the profiled kernels: set train.steps.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
ranks=${RANKS:-0}
[[ $ranks =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || { echo "ncu.sh: RANKS: not a list of ranks (expected all or ranks such as 0 or 0,3, got '$ranks')" >&2; exit 2; }
[ "$ranks" = all ] || [[ ,$ranks, == *,$rank,* ]] || exec "$@"
command -v ncu >/dev/null || {
  echo "ncu.sh: ncu is not on PATH; load or install Nsight Compute (module load cuda, or nsight-compute)" >&2
  exit 2
}
case ${CAPTURE:-steps} in
  steps|window) capture=(--profile-from-start off) ;;  # "window" is the former name of "steps"
  all) capture=() ;;
  *) echo "ncu.sh: CAPTURE: unknown value (expected steps or all, got '$CAPTURE')" >&2; exit 2 ;;
esac
# A phase is a push-pop range of the domain fusionseg; a filter for such a range ends with a slash. The scope is the process,
# because autograd's own thread launches the kernels of `backward` and has no ranges.
filters=(--nvtx)
if [[ $(ncu --help 2>/dev/null) == *--nvtx-push-pop-scope* ]]; then filters+=(--nvtx-push-pop-scope process)
else echo "ncu.sh: this version of ncu filters by ranges of the launching thread, so it finds no kernels of backward" >&2; fi
read -ra phases <<< "${PHASES:-forward backward}"
for phase in "${phases[@]}"; do filters+=(--nvtx-include "fusionseg@$phase/"); done
output=${OUTPUT:-profile}
mkdir -p "$output"
read -ra options <<< "${NCU_OPTIONS:-}"
exec ncu --set "${SET:-detailed}" --launch-skip "${SKIP:-0}" --launch-count "${KERNELS:-50}" \
  --kernel-name "${KERNEL_NAME:-regex:^(?!nccl)}" --target-processes all --force-overwrite \
  --export "$output/ncu_rank${rank}_$(hostname -s)" \
  "${filters[@]}" ${capture[@]+"${capture[@]}"} ${options[@]+"${options[@]}"} "$@"
