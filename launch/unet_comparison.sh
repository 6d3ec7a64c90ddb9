#!/usr/bin/env bash
# The U-Net, ResUNet, Attention U-Net and Attention ResUNet at equal budget, three seeds each: one table.
# Started again, it goes on where it was.
#
#   bash launch/unet_comparison.sh /data/Task04_Hippocampus tables/unets
#   MODELS="unet monai_unet segresnet" SEEDS=0 WIDTH= bash launch/unet_comparison.sh DATA FOLDER [key.path=value ...]
#
# WIDTH is what every network is given beside its name; CONFIG names another configuration.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
data=$1 folder=$2; shift 2
python=${PYTHON:-python3}
width=${WIDTH-model.channels=[16, 32, 64, 128]}
for model in ${MODELS:-unet resunet attention_unet attention_resunet}; do
  for seed in ${SEEDS:-0 1 2}; do
    "$python" -m fusionseg.train --config "${CONFIG:-configs/hippocampus_unets.yaml}" \
      data.root="$data" output="$folder" name="${model}_$seed" seed="$seed" model.name="$model" ${width:+"$width"} "$@"
  done
done
"$python" -m fusionseg compare "$folder" --output "$folder"
