#!/usr/bin/env bash
# Train on all GPUs of this machine, one process each. CUDA_VISIBLE_DEVICES selects fewer. Started again, it resumes.
#
#   bash launch/one_node.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/scratch/runs train.global_batch=8
#   NPROC=2 bash launch/one_node.sh ...                                              (number of processes; also on a CPU)
#   RESTARTS=3 bash launch/one_node.sh ...                                           (start again, up to 3 times, when a process has died)
#   MODULE=fusionseg.pretrain bash launch/one_node.sh configs/mae_swin.yaml ...      (pre-training)
#
# train.global_batch must be a multiple of train.micro_batch x processes.
# Each process binds itself to the CPUs near its GPU (distributed.bind_cpus=false: it does not).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
config=$1; shift
python=${PYTHON:-python3}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# torchrun forwards SIGUSR2, by which schedulers announce the time limit, only if it is listed here. SIGHUP, which a closed
# terminal sends, makes the ranks save and end. nohup ignores SIGHUP; torchrun must then not handle it, so that the run continues.
signals=SIGTERM,SIGINT,SIGQUIT,SIGUSR2
[ -n "$(trap -p HUP)" ] || signals=$signals,SIGHUP
# --standalone chooses a free port, so that several jobs can run on one node.
exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$nproc" --max-restarts="${RESTARTS:-0}" --signals-to-handle="$signals" \
  -m "${MODULE:-fusionseg.train}" --config "$config" "$@"
