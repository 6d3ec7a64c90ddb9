#!/usr/bin/env bash
# Does pre-training help where labels are few? Pre-train on all images, then train on 16 labelled cases from the
# pre-trained encoder and from scratch, the same steps, three seeds each: one table. Started again, it goes on where it was.
#
#   bash launch/few_labels.sh /data/Task04_Hippocampus tables/few_labels
#   PRETRAIN=configs/a.yaml CONFIG=configs/b.yaml SEEDS="0 1 2" bash launch/few_labels.sh DATA FOLDER [key.path=value ...]
#
# The overrides are those of the trainings, not of the pre-training.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
data=$1 folder=$2; shift 2
python=${PYTHON:-python3}
"$python" -m fusionseg.pretrain --config "${PRETRAIN:-configs/hippocampus_pretrain.yaml}" \
  data.root="$data" output="$folder" name=pretrained
for seed in ${SEEDS:-0 1 2}; do
  for start in scratch pretrained; do
    from=null
    [ "$start" = scratch ] || from=$folder/pretrained
    "$python" -m fusionseg.train --config "${CONFIG:-configs/hippocampus_few_labels.yaml}" \
      data.root="$data" output="$folder/trained" name="${start}_$seed" seed="$seed" init_from="$from" "$@"
  done
done
"$python" -m fusionseg compare "$folder/trained" --output "$folder"
