#!/usr/bin/env bash
# Compare training from a pre-trained encoder with training from scratch, on few labels: one table.
#
# The script pre-trains on all images of the training folds. Then it trains on 16 labelled cases, from the pre-trained encoder
# and from scratch, with the same number of steps and three seeds each. After an interruption, start it again: it continues.
# Each fold gets its own pre-training, because an encoder must not have seen the validation cases.
#
#   bash launch/few_labels.sh /data/Task04_Hippocampus tables/few_labels
#   PRETRAIN=configs/a.yaml CONFIG=configs/b.yaml SEEDS="0 1 2" bash launch/few_labels.sh DATA FOLDER [key.path=value ...]
#   FOLDS="0 1 2 3 4" bash launch/few_labels.sh DATA FOLDER
#
# The overrides apply to the trainings, not to the pre-training. FOLDS (default: 0) applies to both.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
data=$1 folder=$2; shift 2
python=${PYTHON:-python3}
for fold in ${FOLDS:-0}; do
  of_fold=
  [ "$fold" = 0 ] || of_fold=_fold$fold
  "$python" -m fusionseg.pretrain --config "${PRETRAIN:-hippocampus_pretrain}" \
    data.root="$data" data.fold="$fold" output="$folder" name="pretrained$of_fold"
  for seed in ${SEEDS:-0 1 2}; do
    for start in scratch pretrained; do
      from=null
      [ "$start" = scratch ] || from=$folder/pretrained$of_fold
      "$python" -m fusionseg.train --config "${CONFIG:-hippocampus_few_labels}" data.root="$data" \
        data.fold="$fold" output="$folder/trained" name="${start}_$seed$of_fold" seed="$seed" init_from="$from" "$@"
    done
  done
done
"$python" -m fusionseg compare "$folder/trained" --output "$folder"
