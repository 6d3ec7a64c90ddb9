#!/usr/bin/env bash
# Demonstration of all steps on synthetic data: synth, check, train, evaluate, predict.
# After an interruption, start it again: it continues.
#
#   bash launch/demo.sh [FOLDER]        (default: demo; PYTHON names the interpreter)
set -euo pipefail
folder=${1:-demo}
python=${PYTHON:-python3}
run="$folder/runs/demo"

echo "== 1/5 synthetic chest CTs with a pulmonary-artery tree"
"$python" -m fusionseg synth "$folder/data" --cases 20 --size 96 --seed 0
echo "== 2/5 check the data set"
"$python" -m fusionseg check "$folder/data" --patch 64 64 64
echo "== 3/5 train a small Swin Fusion UNETR (overdrive)"
"$python" -m fusionseg.train --config demo data.root="$folder/data" output="$folder/runs"
echo "== 4/5 evaluate it on the validation fold"
"$python" -m fusionseg evaluate "$run"
echo "== 5/5 predict a new scan"
"$python" -m fusionseg synth "$folder/new" --cases 1 --size 96 --seed 1
"$python" -m fusionseg predict "$run" --input "$folder/new/imagesTr" --output "$folder/masks"

cat <<EOF

done
  results      $run/evaluation: a table of the cases, a summary, a picture
  masks        $folder/masks
  TensorBoard  ${python%python}tensorboard --logdir $folder/runs
EOF
