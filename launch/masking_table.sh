#!/usr/bin/env bash
# Compare masking ratios of 10, 30, 50 and 75 %: one table of reconstruction scores, with two trivial baselines (mean and
# linear interpolation). After an interruption, start it again: it continues.
#
#   bash launch/masking_table.sh configs/hippocampus_pretrain.yaml /data/Task04_Hippocampus tables/masking
#   RATIOS="0.25 0.75" bash launch/masking_table.sh CONFIG DATA FOLDER train.steps=5000 [key.path=value ...]
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
config=$1 data=$2 folder=$3; shift 3
python=${PYTHON:-python3}
for ratio in ${RATIOS:-0.1 0.3 0.5 0.75}; do
  "$python" -m fusionseg.pretrain --config "$config" data.root="$data" output="$folder" name="hidden_$ratio" \
    pretrain.ratio="$ratio" "$@"
done
"$python" -m fusionseg compare "$folder" --output "$folder"
