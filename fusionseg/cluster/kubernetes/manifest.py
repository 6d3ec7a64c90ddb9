"""The manifest of a run: its configuration as a ConfigMap, and a PyTorchJob of Kubeflow's training operator.

The fields are those of the operator's API `kubeflow.org/v1`. The operator starts a pod for each node of the run, the
first one as `Master`, and sets `MASTER_ADDR` and `MASTER_PORT` in each: the name and a port of the master's pod, on
which its torchrun opens the store of the rendezvous. Kubernetes replaces `$(NAME)` in the arguments of a container.

The operator sets torchrun's own variables too (`PET_...`), for its static rendezvous. The arguments win over them: with
that rendezvous, a torchrun that is started again may find the store of a master that is about to end, and wait for the
ranks' whole time limit.
"""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

import yaml

from fusionseg.cluster.kubernetes.job import KubernetesJob, kubernetes_name
from fusionseg.cluster.kubernetes.settings import CONFIG_FOLDER, SHARED_MEMORY
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.config import dump_config

_CONFIG_FILE = "run.yaml"
_STORE_S = 300
"""Seconds that torchrun waits for the store of the master, which may be starting again."""
_END_S = 30
"""Seconds from the time that torchrun gives its ranks to the one at which Kubernetes kills a pod."""
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Variable of torchrun: seconds that its ranks have after SIGTERM. Without it they have 30."""
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable of torchrun: ranks have a store of their own. In torch 2.13, restarted ranks would find the addresses of the
dead ones in the shared one."""
_ELSEWHERE = {
    "partition": "", "account": "", "qos": "", "constraint": "kubernetes.pod.nodeSelector",
    "exclude": "kubernetes.pod.affinity", "gpu_type": "kubernetes.pod.nodeSelector", "sbatch": "", "setup": "the image",
    "python": "the image", "container": "the image", "parallel": "", "requeue": "", "max_requeues": "",
}  # fmt: skip
"""Keys of a profile of SLURM that Kubernetes has not, and what does their work."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors. It quotes texts that the parser of Kubernetes would take for numbers or booleans."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = re.match(r"[-+]?\.?\d|[yn]$", text, re.IGNORECASE) is not None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _represent_text)


def manifest_text(job: KubernetesJob) -> str:
    """Write the manifest of a run as two YAML documents. It depends on the arguments only.

    Args:
        job: the run; `check_jobs` has accepted it.
    """
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, f"{job.name}-config"),
        "immutable": True,
    }
    text = textwrap.indent(dump_config(job.config), "    ")
    documents = [
        f"{_header(job)}{_dump(config_map)}data:\n  {_CONFIG_FILE}: |\n{text}",
        _dump(
            {
                "apiVersion": "kubeflow.org/v1",
                "kind": "PyTorchJob",
                "metadata": _metadata(job, job.name, job.cluster.kubernetes.labels),
                "spec": _spec(job),
            }
        ),
    ]
    return "---\n".join(documents)


def _dump(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)


def _header(job: KubernetesJob) -> str:
    """The comment at the top: the use of the file, and what the profile says that Kubernetes has not."""
    cluster = job.cluster
    lines = [
        f"Training on Kubernetes: {job.run_folder} as a PyTorchJob of Kubeflow's training operator.",
        "  kubectl apply -f FILE     start it",
        "  kubectl delete -f FILE    end it; the ranks save a checkpoint first, and the next apply continues the run",
        f"After {cluster.time} (activeDeadlineSeconds) it saves and ends as failed: delete and apply continue it.",
    ]
    if cluster.max_restarts:
        pods = "the container" if cluster.nodes == 1 else "the containers"
        lines.append(
            f"When a rank dies, torchrun starts all ranks again, {cluster.max_restarts} times; then, or when torchrun"
            f" itself ends, Kubernetes starts {pods} again. The run continues at its newest checkpoint."
        )
    if cluster.nodes > 1:
        lines.append("Claims that several pods mount need the access mode ReadWriteMany (ReadOnlyMany with :ro).")
    return "".join(f"# {line}\n" for text in [*lines, *_left_out(cluster)] for line in _wrapped(text))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 108) if len(text) > 108 else [text]


def _left_out(cluster: ClusterConfig) -> list[str]:
    """Remarks on keys of the profile that Kubernetes has not."""
    given = [
        key for key in _ELSEWHERE if key in cluster.model_fields_set and getattr(cluster, key) not in (None, {}, [])
    ]
    names = [f"{key} ({_ELSEWHERE[key]} does this)" if _ELSEWHERE[key] else key for key in given]
    lines = [f"Keys of the profile that Kubernetes has not: {', '.join(names)}."] if names else []
    if interfaces := [name for name in cluster.environment if name.endswith("_SOCKET_IFNAME")]:
        lines.append(f"{', '.join(interfaces)}: the name of an interface in the pods, mostly eth0.")
    return lines


def _metadata(job: KubernetesJob, name: str, further: dict[str, str] | None = None) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "fusionseg", "app.kubernetes.io/instance": job.name}
    if job.sweep is not None:
        labels["app.kubernetes.io/part-of"] = kubernetes_name(job.sweep)
    namespace = job.cluster.kubernetes.namespace
    return {
        "name": name,
        **({"namespace": namespace} if namespace is not None else {}),
        "labels": {**labels, **(further or {})},
        "annotations": {"fusionseg-run": job.run_folder},
    }


def _spec(job: KubernetesJob) -> dict[str, Any]:
    cluster = job.cluster
    nodes, restarts = cluster.nodes, cluster.max_restarts
    replicas = {"Master": _replica(job, 1, is_master=True)}
    if nodes > 1:
        replicas["Worker"] = _replica(job, nodes - 1, is_master=False)
    return {
        "nprocPerNode": str(cluster.ranks_per_node),
        "runPolicy": {
            "activeDeadlineSeconds": cluster.time_s,
            # The operator counts the restarts of all containers. When the master's ends, those of all pods end, and
            # some a second time, since they meet the old one.
            "backoffLimit": 2 * restarts * nodes + 1 if restarts else 0,
            "cleanPodPolicy": "Running",
        },
        "pytorchReplicaSpecs": replicas,
    }


def _replica(job: KubernetesJob, number: int, *, is_master: bool) -> dict[str, Any]:
    return {
        "replicas": number,
        "restartPolicy": "OnFailure" if job.cluster.max_restarts else "Never",
        "template": {
            # A proxy beside the training would not end with it, and the job would not either.
            "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
            "spec": _pod(job, is_master=is_master),
        },
    }


def _pod(job: KubernetesJob, *, is_master: bool) -> dict[str, Any]:
    settings = job.cluster.kubernetes
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": f"{job.name}-config"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": str(CONFIG_FOLDER), "readOnly": True},
        {"name": "shm", "mountPath": str(SHARED_MEMORY)},
    ]
    for number, (path, (claim, read_only)) in enumerate(settings.mounts().items()):
        name, state = f"claim-{number}", ({"readOnly": True} if read_only else {})
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim, **state}})
        mounts.append({"name": name, "mountPath": str(path), **state})
    return {
        **settings.pod,
        "terminationGracePeriodSeconds": job.cluster.signal_s + _END_S,
        "containers": [
            {
                "name": "pytorch",  # the operator looks for this name
                "image": settings.image,
                "command": ["torchrun"],
                "args": _arguments(job, is_master=is_master),
                "env": _environment(job.cluster),
                "resources": _resources(job.cluster),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _arguments(job: KubernetesJob, *, is_master: bool) -> list[str]:
    cluster = job.cluster
    # A pod may wait for a node, and the others for it, for longer than torchrun's 10 minutes.
    rendezvous = {"is_host": int(is_master), "join_timeout": cluster.time_s, "read_timeout": _STORE_S}
    program = "fusionseg.train" if job.config.pretrain is None else "fusionseg.pretrain"
    return [
        f"--nnodes={cluster.nodes}",
        f"--nproc-per-node={cluster.ranks_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job.name}",
        "--rdzv-endpoint=$(MASTER_ADDR):$(MASTER_PORT)",
        f"--rdzv-conf={','.join(f'{key}={value}' for key, value in rendezvous.items())}",
        "--local-addr=$(POD_IP)",  # the others cannot look up the names of workers
        f"--max-restarts={cluster.max_restarts}",
        "-m",
        program,
        "--config",
        str(CONFIG_FOLDER / _CONFIG_FILE),
    ]


def _environment(cluster: ClusterConfig) -> list[dict[str, Any]]:
    values = {_SHUTDOWN: str(cluster.signal_s), _OWN_STORE: "1", **cluster.environment}
    return [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _resources(cluster: ClusterConfig) -> dict[str, Any]:
    """Limits that are requests too: a pod with equal ones is the last to be evicted."""
    amounts: dict[str, str] = {"cpu": str(cluster.cpus_per_task * cluster.ranks_per_node)}
    if cluster.memory_gb_per_task is not None:
        amounts["memory"] = f"{math.ceil(cluster.memory_gb_per_task * cluster.ranks_per_node * 1024)}Mi"
    if cluster.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(cluster.gpus_per_node)
    return {"requests": amounts, "limits": dict(amounts)}
