#!/usr/bin/env bash
# Train on several machines without a scheduler: run this script on each machine, with its own NODE_RANK.
#
#   node 0:  NNODES=2 NODE_RANK=0 MASTER=10.0.0.1 bash launch/many_nodes.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/shared/runs train.global_batch=8
#   node 1:  NNODES=2 NODE_RANK=1 MASTER=10.0.0.1 bash launch/many_nodes.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/shared/runs train.global_batch=8
#
# Environment variables:
#   NNODES     number of machines
#   NODE_RANK  index of this machine, from 0
#   MASTER     address of machine 0; its port PORT (default: 29400) must be reachable from all machines
#   NPROC      processes per machine (default: its number of GPUs)
#   MODULE     program: fusionseg.train (default) or fusionseg.pretrain
#   RESTARTS   restarts of the processes after one of them has died (default: 0); the run continues at its newest checkpoint
# On machines with several networks, also set the interface, NCCL_SOCKET_IFNAME=ib0; gloo takes it from there unless GLOO_SOCKET_IFNAME is set.
#
# `output` must be on a file system that all machines share; the preprocessed cases are below it. NNODES x NPROC x
# train.micro_batch must divide train.global_batch.
# Each process binds itself to the CPUs near its GPU (distributed.bind_cpus=false: it does not).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^[^#]/{/^#/p}' "$0" >&2; exit 2; }
missing=()
for name in NNODES NODE_RANK MASTER; do [ -n "${!name:-}" ] || missing+=("$name"); done
[ ${#missing[@]} -eq 0 ] || { echo "many_nodes.sh: set ${missing[*]} (see the top of this file)" >&2; exit 2; }
config=$1; shift
python=${PYTHON:-python3}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# torchrun forwards SIGUSR2, by which schedulers announce the time limit, only if it is listed here. SIGHUP, which a closed
# terminal sends, makes the ranks save and end. nohup ignores SIGHUP; torchrun must then not handle it, so that the run continues.
signals=SIGTERM,SIGINT,SIGQUIT,SIGUSR2
[ -n "$(trap -p HUP)" ] || signals=$signals,SIGHUP
exec "$python" -m torch.distributed.run --nnodes="$NNODES" --node_rank="$NODE_RANK" --nproc_per_node="$nproc" --max-restarts="${RESTARTS:-0}" \
  --master_addr="$MASTER" --master_port="${PORT:-29400}" --signals-to-handle="$signals" -m "${MODULE:-fusionseg.train}" --config "$config" "$@"
