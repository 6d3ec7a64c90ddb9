#!/usr/bin/env bash
# Train on one device: a GPU, or the CPU if there is no GPU. Started again, it resumes.
#
#   bash launch/one_gpu.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/scratch/runs
#   CUDA_VISIBLE_DEVICES=3 bash launch/one_gpu.sh ...                                (choose the GPU)
#   MODULE=fusionseg.pretrain bash launch/one_gpu.sh configs/mae_swin.yaml ...       (pre-training)
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
config=$1; shift
exec "${PYTHON:-python3}" -m "${MODULE:-fusionseg.train}" --config "$config" "$@"
