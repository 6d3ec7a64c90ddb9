#!/usr/bin/env bash
# The checks that need a GPU, in one go, as one table for docs/benchmarks.md, to be told with date and device:
# the benchmark beside the other recipes in every precision, compiled or not, with the cache on the device and on the
# host; Swin UNETR and pre-training beside MONAI's; the roofline; a training that is watched (NVML: how busy it kept the
# GPU), profiled (torch, memory), killed, resumed, evaluated.
#
#   bash profiling/gpu_checks.sh [OUT]                         (default: gpu_checks; DATA=folder for a data set of yours)
#   DEVICE=cpu TURNS=1 bash profiling/gpu_checks.sh            (no GPU: proves that the script works)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_checks}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
turns=${TURNS:-20}
if [ "$device" = cuda ]; then precisions="fp32 bf16 fp16"; places="accelerator host"; compiles="false true"; steps=2000
  beside=()
else precisions="bf16"; places="host"; compiles="false"; steps=40; beside=(--networks unet --recipes monai_fast); fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
has_bf16='import sys, torch; from fusionseg.training.precision import has_bf16; sys.exit(not has_bf16(torch.device("cuda")))'
[ "$device" != cuda ] || "$python" -c "$has_bf16" || precisions="fp32 fp16"   # a T4, a V100
mkdir -p "$out"
table=$out/table.md
: > "$table"
say() { echo "== $*" >&2; }
keep() { tee -a "$table"; echo >> "$table"; }

say "is everything there?"
"$python" -m fusionseg doctor --folder "$out" | tee "$out/doctor.txt" || true
data=${DATA:-$out/data}
[ -n "${DATA:-}" ] || "$python" -m fusionseg synth "$data" --cases 10 --size 96
window=("data.intensity={clip: [-200, 500]}"); [ -z "${DATA:-}" ] || window=()

say "beside the other recipes"
first=1
for precision in $precisions; do for place in $places; do for compile in $compiles; do
  name="$precision-$place-compile_$compile"
  cases="step epoch"; [ "$first" = 0 ] || cases="data step epoch validation checkpoint start ranges"; first=0
  say "$name"
  { echo "### $name"; echo; } >> "$table"
  # shellcheck disable=SC2086
  "$python" profiling/benchmark.py --data "$data" --turns "$turns" --cases $cases "${beside[@]}" --json "$out/$name.json" \
    device="$device" train.precision="$precision" cache.device="$place" train.compile="$compile" "${window[@]}" | keep
done; done; done

say "Swin UNETR, pre-training, the roofline"
if [ "$device" = cuda ]; then
  "$python" profiling/benchmark_swin.py --precision fp32 bf16 fp16 --compile off on --turns "$turns" --device cuda | keep
  "$python" profiling/benchmark_mae.py --batch 2 --turns "$turns" --device cuda | keep
fi
"$python" profiling/roofline.py --data "$data" --steps 5 --json "$out/roofline.json" device="$device" "${window[@]}" | keep

say "a training that is watched, profiled, killed and resumed"
train=("$python" -m fusionseg.train --config configs/demo.yaml data.root="$data" output="$out/runs" name=watched
       device="$device" train.steps="$steps" schedule.warmup=5 checkpoint.every=10 validate.every="$steps" log.every=10
       "${window[@]}")
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
