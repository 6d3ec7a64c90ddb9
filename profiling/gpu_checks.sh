#!/usr/bin/env bash
# Run all checks that need a GPU, and collect their tables in OUT/table.md for docs/benchmarks.md:
# - the benchmark against other recipes in every precision, with and without compile, cache on the device and on the host
# - Swin UNETR and pre-training against MONAI's
# - the roofline
# - a training that is monitored (NVML), profiled (torch, memory), killed, resumed and evaluated
#
#   bash profiling/gpu_checks.sh [OUT]                    (default of OUT: gpu_checks; DATA=folder takes your data set)
#   DEVICE=cpu ROUNDS=1 bash profiling/gpu_checks.sh      (without a GPU: tests the script itself)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_checks}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
rounds=${ROUNDS:-${TURNS:-20}}  # TURNS is the former name
if [ "$device" = cuda ]; then precisions="fp32 bf16 fp16"; caches="accelerator host"; compiles="false true"; steps=2000
  selection=()
else precisions="bf16"; caches="host"; compiles="false"; steps=40; selection=(--networks unet --recipes monai_fast); fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
has_bf16='import sys, torch; from fusionseg.training.precision import has_bf16; sys.exit(not has_bf16(torch.device("cuda")))'
[ "$device" != cuda ] || "$python" -c "$has_bf16" || precisions="fp32 fp16"   # a T4, a V100
mkdir -p "$out"
table=$out/table.md
: > "$table"
say() { echo "== $*" >&2; }
keep() { tee -a "$table"; echo >> "$table"; }

say "checking the environment"
"$python" -m fusionseg doctor --folder "$out" | tee "$out/doctor.txt" || true
data=${DATA:-$out/data}
[ -n "${DATA:-}" ] || "$python" -m fusionseg synth "$data" --cases 10 --size 96
intensity=("data.intensity={clip: [-200, 500]}"); [ -z "${DATA:-}" ] || intensity=()

say "benchmark against other recipes"
first=1
for precision in $precisions; do for cache in $caches; do for compile in $compiles; do
  name="$precision-$cache-compile_$compile"
  cases="step epoch"; [ "$first" = 0 ] || cases="data step epoch validation checkpoint start ranges"; first=0
  say "$name"
  { echo "### $name"; echo; } >> "$table"
  # shellcheck disable=SC2086
  "$python" profiling/benchmark.py --data "$data" --rounds "$rounds" --cases $cases "${selection[@]}" --json "$out/$name.json" \
    device="$device" train.precision="$precision" cache.device="$cache" train.compile="$compile" "${intensity[@]}" | keep
done; done; done

say "Swin UNETR, pre-training, roofline"
if [ "$device" = cuda ]; then
  "$python" profiling/benchmark_swin.py --precision fp32 bf16 fp16 --compile off on --rounds "$rounds" --device cuda | keep
  "$python" profiling/benchmark_mae.py --batch 2 --rounds "$rounds" --device cuda | keep
fi
"$python" profiling/roofline.py --data "$data" --steps 5 --json "$out/roofline.json" device="$device" "${intensity[@]}" | keep

say "a training that is monitored, profiled, killed and resumed"
train=("$python" -m fusionseg.train --config configs/demo.yaml data.root="$data" output="$out/runs" name=watched
       device="$device" train.steps="$steps" schedule.warmup=5 checkpoint.every=10 validate.every="$steps" log.every=10
       "${intensity[@]}")
"${train[@]}" profile.steps=[5,8] & pid=$!
reached='import sys, pathlib, fusionseg.runs.paths as p; sys.exit(p.last_step(pathlib.Path(sys.argv[1])) < 20)'
until "$python" -c "$reached" "$out/runs/watched"; do kill -0 "$pid"; sleep 0.2; done
kill -9 "$pid"; wait "$pid" || true
"${train[@]}"
if [ "$device" = cuda ]; then
  "${train[@]}" name=memory train.steps=10 validate.every=10 profile.steps=[5,8] profile.with=memory
fi
"$python" profiling/report.py "$out/runs/watched" | keep
"$python" -m fusionseg status "$out/runs/watched" | keep
"$python" -m fusionseg evaluate "$out/runs/watched" --device "$device" | keep
echo "$table"
