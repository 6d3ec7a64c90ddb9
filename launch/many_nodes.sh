#!/usr/bin/env bash
# Several machines without a scheduler: run this on each of them, with the same arguments but NODE_RANK.
#
#   node 0:  NNODES=2 NODE_RANK=0 MASTER=10.0.0.1 bash launch/many_nodes.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/shared/runs train.global_batch=8
#   node 1:  NNODES=2 NODE_RANK=1 MASTER=10.0.0.1 bash launch/many_nodes.sh configs/parse_fusion_od.yaml data.root=/data/PARSE output=/shared/runs train.global_batch=8
#
# MASTER is node 0's address, PORT (29400) must be reachable there; `output` must be on a file system that all nodes
# share, `data.root` may be, and the prepared cases (below `output`) are. NPROC is the processes per node (its GPUs; 4 here):
# nodes x NPROC x train.micro_batch must divide train.global_batch.
# Behind several networks, name the right interface: NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0.
# MODULE=fusionseg.pretrain pre-trains.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,11p' "$0" >&2; exit 2; }
missing=()
for name in NNODES NODE_RANK MASTER; do [ -n "${!name:-}" ] || missing+=("$name"); done
[ ${#missing[@]} -eq 0 ] || { echo "many_nodes.sh: set ${missing[*]} (see the top of this file)" >&2; exit 2; }
config=$1; shift
python=${PYTHON:-python3}
nproc=${NPROC:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# torchrun passes SIGUSR2 (a scheduler's early warning) on to the ranks only when told to. SIGHUP (the terminal is closed)
# saves the run and ends it; started by nohup, which has it ignored, torchrun must not take it: the run goes on.
signals=SIGTERM,SIGINT,SIGQUIT,SIGUSR2
[ -n "$(trap -p HUP)" ] || signals=$signals,SIGHUP
exec "$python" -m torch.distributed.run --nnodes="$NNODES" --node_rank="$NODE_RANK" --nproc_per_node="$nproc" \
  --master_addr="$MASTER" --master_port="${PORT:-29400}" --signals-to-handle="$signals" -m "${MODULE:-fusionseg.train}" --config "$config" "$@"
