#!/usr/bin/env bash
# All GPUs of this machine, one process each. Fewer: CUDA_VISIBLE_DEVICES. Started again, it resumes.
#
#   bash launch/one_node.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/scratch/runs train.global_batch=8
#   NPROC=2 bash launch/one_node.sh ...                       (a certain number of processes; on a CPU too)
#   MODULE=fusionseg.pretrain bash launch/one_node.sh configs/mae_swin.yaml ...      (a pre-training)
#
# The configuration states the global batch; it must be a multiple of micro_batch x processes.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
config=$1; shift
python=${PYTHON:-python3}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# torchrun passes SIGUSR2 (a scheduler's early warning) on to the ranks only when told to. SIGHUP (the terminal is closed)
# saves the run and ends it; started by nohup, which has it ignored, torchrun must not take it: the run goes on.
signals=SIGTERM,SIGINT,SIGQUIT,SIGUSR2
[ -n "$(trap -p HUP)" ] || signals=$signals,SIGHUP
# --standalone picks a free port on this machine: several jobs on one node do not collide
exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$nproc" --signals-to-handle="$signals" \
  -m "${MODULE:-fusionseg.train}" --config "$config" "$@"
