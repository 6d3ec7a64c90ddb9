#!/usr/bin/env bash
# The checks that need a GPU, in one go: the engine's step against the bare loop in every precision, compiled or not,
# with the cache on the device and on the host; then a short training that is killed and resumed, and a prediction.
# One folder of JSON and one Markdown table come out; docs/benchmarks.md is where the table goes, with date and device.
#
#   bash profiling/gpu_checks.sh [OUT]               (default: gpu_checks)
#   DEVICE=cpu STEPS=3 bash profiling/gpu_checks.sh  (no GPU: proves that the script works)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_checks}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
steps=${STEPS:-50}
if [ "$device" = cuda ]; then precisions="fp32 bf16 fp16"; places="accelerator host"; compiles="false true"
else precisions="fp32 bf16"; places="host"; compiles="false"; fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
"$python" -m fusionseg synth "$out/data" --cases 10 --size 96
for config in hippocampus_unet demo; do
  for precision in $precisions; do for place in $places; do for compile in $compiles; do
    name="$config-$precision-$place-compile_$compile"
    echo "== $name" >&2
    "$python" profiling/benchmark_step.py --config "configs/$config.yaml" --data "$out/data" --steps "$steps" \
      --json "$out/$name.json" device="$device" train.precision="$precision" cache.device="$place" \
      train.compile="$compile" "data.intensity={clip: [-200, 500]}" | tee -a "$out/table.md"
    echo >> "$out/table.md"
  done; done; done
done
train=("$python" -m fusionseg.train --config configs/demo.yaml data.root="$out/data" output="$out/runs"
       name="resume" device="$device" train.steps=40 schedule.warmup=5 checkpoint.every=5 validate.every=20)
"${train[@]}" & pid=$!
until [ -e "$out/runs/resume/checkpoints/step_00000010.pt" ]; do kill -0 "$pid"; sleep 0.2; done
kill -9 "$pid"; wait "$pid" || true
"${train[@]}"
"$python" -m fusionseg evaluate "$out/runs/resume" --device "$device" | tee -a "$out/table.md"
echo "$out/table.md"
