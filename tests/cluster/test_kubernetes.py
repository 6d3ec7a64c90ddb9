"""Manifests for Kubernetes: their text, their schema, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fusionseg.cli import main
from fusionseg.cluster.kubernetes.job import MAX_LETTERS, kubernetes_name
from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.config import load_config, validate
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "launch/pytorchjob.yaml"
SCHEMA = json.loads((Path(__file__).parent / "pytorchjob_schema.json").read_text(encoding="utf-8"))
PATHS = ("data.root=/data/PARSE", "output=/scratch/runs", "train.global_batch=16")

IMAGE = ("--image", "registry.example.org/fusionseg:0.1.0")
CLAIMS = ("--claim", "datasets=/data:ro", "--claim", "scratch=/scratch")

Manifest = Callable[..., str]


@pytest.fixture
def manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """`manifest(*words)`: the output of `fusionseg manifest` in an empty folder, with the shipped profile, an image and
    two claims."""
    monkeypatch.chdir(tmp_path)

    def write(*words: str, cluster: str = "kubernetes", status: int = 0) -> str:
        if cluster == "kubernetes":
            words = (*words, *(() if "--image" in words else IMAGE), *(() if "--claim" in words else CLAIMS))
        assert main(["manifest", *words, "--cluster", cluster]) == status
        shown = capsys.readouterr()
        if status:
            assert shown.out == ""
            return shown.err
        return shown.out

    return write


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a manifest, each of which the schema accepts."""
    found = list(yaml.safe_load_all(text))
    for document in found:
        jsonschema.validate(document, SCHEMA)
    return found


def pod(job: dict[str, Any], kind: str = "Master") -> dict[str, Any]:
    """The specification of a pod."""
    found: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"][kind]["template"]["spec"]
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod(job)["containers"][0]
    return found


def test_the_example_in_launch_is_what_the_command_writes(manifest: Manifest) -> None:
    """After an intended change: FUSIONSEG_WRITE_GOLDEN=1 pytest tests/cluster/test_kubernetes.py; read the changes."""
    text = manifest("parse_fusion_od", *PATHS)
    if os.environ.get("FUSIONSEG_WRITE_GOLDEN"):
        EXAMPLE.write_text(text, encoding="utf-8")
    assert text == EXAMPLE.read_text(encoding="utf-8")


def test_the_schema_accepts_the_example_and_refuses_misspelt_fields() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    _, job = documents(EXAMPLE.read_text(encoding="utf-8"))
    for change in (
        lambda job: job["spec"].update(nProcPerNode="8"),
        lambda job: job["spec"].update(nprocPerNode=8),
        lambda job: job["spec"]["pytorchReplicaSpecs"]["Master"].update(replicas=2),
        lambda job: container(job).update(name="training"),
        lambda job: container(job)["env"].append({"name": "A", "value": 1}),
        lambda job: job["metadata"].update(name="parse_fusion_od"),
    ):
        wrong = json.loads(json.dumps(job))
        change(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_the_pods_have_the_resolved_configuration(manifest: Manifest) -> None:
    config_map, job = documents(manifest("parse_fusion_od", *PATHS, "optim.lr=3e-4"))
    expected = load_config("parse_fusion_od", [*PATHS, "optim.lr=3e-4"])
    assert validate(yaml.safe_load(config_map["data"]["run.yaml"])) == expected
    (volume,) = [one for one in pod(job)["volumes"] if "configMap" in one]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (mount,) = [one for one in container(job)["volumeMounts"] if one["name"] == volume["name"]]
    assert container(job)["args"][-3:] == ["fusionseg.train", "--config", f"{mount['mountPath']}/run.yaml"]


def test_nodes_gpus_and_limits(manifest: Manifest) -> None:
    words = ("cluster.nodes=3", "cluster.gpus_per_node=4", "cluster.memory_gb_per_task=1.5", "train.global_batch=24")
    _, job = documents(
        manifest("parse_fusion_od", *PATHS[:2], *words, "cluster.time='1-00:00:00'", "cluster.signal_s=300")
    )
    spec = job["spec"]
    assert spec["nprocPerNode"] == "4"
    assert {kind: one["replicas"] for kind, one in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 2}
    roles = [pod(job, kind)["containers"][0]["args"] for kind in ("Master", "Worker")]
    assert set(roles[0]) ^ set(roles[1]) == {
        f"--rdzv-conf=is_host={one},join_timeout=86400,read_timeout=300" for one in (0, 1)
    }
    assert {"--nnodes=3", "--nproc-per-node=4", "--max-restarts=3"} < set(roles[0])
    assert {one["restartPolicy"] for one in spec["pytorchReplicaSpecs"].values()} == {"OnFailure"}
    # Three failures, each of which ends the containers of three pods, at most twice; the operator ends a job that
    # reaches the limit.
    assert spec["runPolicy"] == {"activeDeadlineSeconds": 86400, "backoffLimit": 19, "cleanPodPolicy": "Running"}
    amounts = {"cpu": "48", "memory": "6144Mi", "nvidia.com/gpu": "4"}
    assert container(job)["resources"] == {"requests": amounts, "limits": amounts}
    assert pod(job)["terminationGracePeriodSeconds"] == 330
    assert {"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": "300"} in container(job)["env"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod(job)["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(job)["volumeMounts"]


def test_one_node_on_cpus_without_restarts(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "cluster: kubernetes\ngpus_per_node: 0\ntasks_per_node: 2\nmax_restarts: 0\nenvironment: {A: 'y', B: '1e3'}\n"
    )
    words = ("--image", "a/b:1", "--claim", "x=/scratch", "--claim", "data.set=/data:ro")
    text = manifest("parse_fusion_od", *words, *PATHS, cluster="own.yaml")
    _, job = documents(text)
    assert list(job["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    assert job["spec"]["pytorchReplicaSpecs"]["Master"]["restartPolicy"] == "Never"
    assert job["spec"]["runPolicy"]["backoffLimit"] == 0
    assert container(job)["resources"]["limits"] == {"cpu": "16"}
    assert container(job)["image"] == "a/b:1"
    claims = {
        one["name"]: one["persistentVolumeClaim"] for one in pod(job)["volumes"] if "persistentVolumeClaim" in one
    }
    assert list(claims.values()) == [{"claimName": "x"}, {"claimName": "data.set", "readOnly": True}]
    mounts = {one["name"]: one for one in container(job)["volumeMounts"]}
    assert [mounts[name]["mountPath"] for name in claims] == ["/scratch", "/data"]
    assert [mounts[name].get("readOnly", False) for name in claims] == [False, True]
    assert 'value: "y"' in text and 'value: "1e3"' in text  # the parser of Kubernetes reads y as true, 1e3 as a number


def test_further_fields_of_job_and_pods(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("""
cluster: kubernetes
kubernetes:
  image: a/b:1
  namespace: team-a
  claims: {scratch: /scratch}
  labels: {kueue.x-k8s.io/queue-name: gpus}
  pod: {nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB}, securityContext: {fsGroup: 1000}}
""")
    paths = ("data.root=/scratch/PARSE", "output=/scratch/runs")
    config_map, job = documents(manifest("parse_fusion_od", *paths, cluster="own.yaml"))
    assert config_map["metadata"]["namespace"] == job["metadata"]["namespace"] == "team-a"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert pod(job)["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert pod(job)["securityContext"] == {"fsGroup": 1000}


def test_a_pretraining_starts_its_own_program(manifest: Manifest) -> None:
    words = ("data.root=/data/scans", "output=/scratch/runs", "cluster.nodes=1", "cluster.gpus_per_node=1")
    _, job = documents(manifest("mae_swin", *words))
    assert "fusionseg.pretrain" in container(job)["args"]


def test_a_profile_of_slurm(manifest: Manifest) -> None:
    """The same profile as for `submit`: what Kubernetes has not is named in the comment."""
    options = ("--image", "a/b:1", "--claim", "scratch=/scratch")
    paths = ("data.root=/scratch/PARSE", "output=/scratch/runs", "train.global_batch=8")
    text = manifest("parse_fusion_od", *options, *paths, cluster="a100_node")
    _, job = documents(text)
    assert container(job)["resources"]["limits"] == {"cpu": "96", "memory": "819200Mi", "nvidia.com/gpu": "8"}
    assert {"name": "NCCL_SOCKET_IFNAME", "value": "ib0"} in container(job)["env"]
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "that Kubernetes has not: partition, account, gpu_type (kubernetes.pod.nodeSelector does this)" in comment
    assert "setup (the image does this)" in comment and "sbatch" in comment and "mostly eth0" in comment


def test_each_run_of_a_sweep_is_a_job(manifest: Manifest) -> None:
    words = ("data.root=/data/PARSE", "output=/scratch/runs", "cluster.nodes=1", "cluster.gpus_per_node=1")
    found = documents(manifest("table2", *words))
    jobs = [one for one in found if one["kind"] == "PyTorchJob"]
    configs = [validate(yaml.safe_load(one["data"]["run.yaml"])) for one in found if one["kind"] == "ConfigMap"]
    assert len(jobs) == len(configs) == 36
    assert len({one["metadata"]["name"] for one in found}) == 72
    assert {one["metadata"]["labels"]["app.kubernetes.io/part-of"] for one in found} == {"table2"}
    assert [job["metadata"]["annotations"]["fusionseg-run"] for job in jobs] == [
        f"/scratch/runs/table2/{config.name}" for config in configs
    ]


def test_runs_of_a_sweep_with_resources_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("""
name: sizes
base: parse_fusion_od
points:
  - {name: small, cluster.nodes: 1, cluster.gpus_per_node: 1}
  - {name: large, cluster.nodes: 2, cluster.gpus_per_node: 1}
""")
    found = documents(manifest("own.yaml", "data.root=/data/PARSE", "output=/scratch/runs", "--image", "other:2"))
    jobs = {one["metadata"]["name"]: one for one in found if one["kind"] == "PyTorchJob"}
    assert list(jobs) == ["sizes-small", "sizes-large"]
    assert ["Worker" in job["spec"]["pytorchReplicaSpecs"] for job in jobs.values()] == [False, True]
    assert {container(job)["image"] for job in jobs.values()} == {"other:2"}


def test_all_problems_are_listed(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "cluster: kubernetes\nnodes: 2\ngpus_per_node: 8\nkubernetes: {claims: {d: '/data:ro'}}\n"
    )
    said = manifest("parse_fusion_od", "output=/data/runs", "resume=never", cluster="own.yaml", status=2)
    for text in (
        "kubernetes.image: there is none",
        "train.global_batch: 2 samples cannot be divided among 16 ranks",
        "resume: never: pods that are started again could not continue",
        "data.root: there is none (expected a path in the pods, below /data)",
        "output: /data/runs lies in the claim d, which is read-only",
    ):
        assert text in said, said
    said = manifest("parse_fusion_od", "cluster.partition=x", "optim.lr=-1", cluster="own.yaml", status=2)
    assert "partition (" in said and "has no effect on Kubernetes" in said and "optim.lr" in said
    said = manifest("parse_fusion_od", cluster="local", status=2)
    assert "cluster: local is this machine" in said and "kubernetes.claims: there are none" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("output=runs",), "output: runs is no absolute path (expected a path in the pods, below /data or /scratch)"),
        (("output=/elsewhere",), "output: /elsewhere lies in no claim"),
        (("output=/data/../x",), "output: /data/../x is no absolute path"),
        (("data.prepared=/data/prepared",), "data.prepared: /data/prepared lies in the claim datasets, which is read-"),
        (("data.prepared=/prepared",), "data.prepared: /prepared lies in no claim"),
        (("data.splits=/mine/splits.json",), "data.splits: /mine/splits.json lies in no claim"),
        (("data.splits=splits.json",), ""),
        (("init_from=/home/me/run",), "init_from: /home/me/run lies in no claim"),
        (("init_from=/home/me/run", "finetune.from_scratch=true"), ""),
    ],
)
def test_paths_lie_in_the_claims(manifest: Manifest, settings: tuple[str, ...], expected: str) -> None:
    said = manifest("parse_fusion_od", *PATHS, *settings, status=2 if expected else 0)
    assert expected in said


def test_a_search_and_a_submission_are_refused(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.yaml").write_text(
        "name: s\nbase: parse_fusion_od\nset: {validate.every: 500}\nsearch: {min_steps: 500, max_steps: 1000}\n"
        "grid: {seed: [0, 1]}\n"
    )
    said = manifest("search.yaml", *PATHS, status=2)
    assert "search.yaml: search: a search waits for the runs of each rung" in said
    assert main(["submit", "table2", "--cluster", "kubernetes", "output=/scratch/runs"]) == 2
    assert "fusionseg manifest table2 --cluster kubernetes" in capsys.readouterr().err
    (tmp_path / "mixed.yaml").write_text("name: s\nbase: parse_fusion_od\npoints: [{cluster: kubernetes}, {seed: 1}]\n")
    assert main(["submit", "mixed.yaml", "--cluster", "t4", "output=/scratch/runs"]) == 2
    assert "cluster: kubernetes: runs are not submitted there" in capsys.readouterr().err


def test_an_unknown_name_is_reported_as_by_the_training(manifest: Manifest) -> None:
    assert "hippocampus_unte: there is no such configuration file" in manifest("hippocampus_unte", status=2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"claims": {"a": "data"}}, "): expected a folder of the pods as an absolute path"),
        ({"claims": {"a": "/"}}, "): expected a folder of the pods as an absolute path"),
        ({"claims": {"a": "/data:rw"}}, "): expected a folder of the pods as an absolute path"),
        ({"claims": {"a": "/x/y", "b": "/x"}}, "): /x and /x/y (claim a) lie in each other"),
        ({"claims": {"a": "/x", "b": "/x"}}, "): /x and /x (claim a) lie in each other"),
        ({"claims": {"a": "/dev"}}, "): /dev and /dev/shm (the shared memory) lie in each other"),
        ({"claims": {"a": "/etc"}}, "): /etc and /etc/fusionseg (the configuration) lie in each other"),
        ({"claims": {"a": "/usr"}}, "): /usr would hide a folder of the image"),
        ({"claims": {"a_b": "/x"}}, "a_b"),
        ({"labels": {"bad label!": "x"}}, "'bad label!' is no key of a label"),
        ({"labels": {"team": "x y"}}, ": 'x y' is no value of a label"),
        ({"labels": {"app.kubernetes.io/part-of": "x"}}, "part-of is set by fusionseg manifest: remove it"),
        ({"image": "a b"}, "image"),
        ({"namespace": "Team"}, "namespace"),
        ({"pod": {"volumes": []}}, "): volumes is set by claims: remove it"),
    ],
)
def test_what_can_be_wrong_in_the_section(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    (tmp_path / "own.yaml").write_text(dump_yaml({"cluster": "kubernetes", "kubernetes": settings}))
    with pytest.raises(UserError) as caught:
        load_cluster(tmp_path / "own.yaml")
    assert any(problem.startswith("kubernetes") for problem in caught.value.problems)
    assert expected in str(caught.value)


def test_claims_of_the_command_line_are_added_to_those_of_the_profile(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "cluster: kubernetes\ngpus_per_node: 8\nkubernetes: {image: i, claims: {datasets: '/elsewhere:ro'}}\n"
    )
    text = manifest("parse_fusion_od", *PATHS, "--claim", "datasets=/data", "--claim", "s=/scratch", cluster="own.yaml")
    (job,) = (one for one in documents(text) if one["kind"] == "PyTorchJob")
    assert [one["mountPath"] for one in container(job)["volumeMounts"]][2:] == ["/data", "/scratch"]
    said = manifest("parse_fusion_od", *PATHS, "--claim", "s=/data", "--claim", "s=/scratch", status=2)
    assert "--claim s: is given for /data and /scratch: a claim has one path" in said


def test_the_shipped_profile_names_no_image_and_no_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "parse_fusion_od", *PATHS, "--cluster", "kubernetes"]) == 2
    said = capsys.readouterr().err
    assert "kubernetes.image: there is none" in said and "kubernetes.claims: there are none" in said


def test_variables_that_the_pods_have_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "cluster: kubernetes\nenvironment: {POD_IP: 'x', MASTER_ADDR: 'y', PET_NNODES: '2', NCCL_DEBUG: WARN}\n"
    )
    said = manifest("parse_fusion_od", *PATHS, *IMAGE, *CLAIMS, cluster="own.yaml", status=2)
    for name in ("POD_IP", "MASTER_ADDR", "PET_NNODES"):
        assert f"environment.{name}: is set in each pod: remove it" in said
    assert "NCCL_DEBUG" not in said


def test_a_claim_of_another_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["manifest", "demo", "--cluster", "kubernetes", "--claim", "scratch"])
    assert ended.value.code == 2
    assert "expected NAME=/PATH, such as scratch=/scratch, got 'scratch'" in capsys.readouterr().err


def test_names_are_labels() -> None:
    assert kubernetes_name("parse_fusion_od") == "parse-fusion-od"
    assert kubernetes_name("3d.Run") == "run-3d-run"
    long = [kubernetes_name("x" * 60 + tail) for tail in ("a", "b")]
    assert len(set(long)) == 2 and all(len(name) == MAX_LETTERS for name in long)


def test_runs_that_would_have_the_same_name(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: s\nbase: parse_fusion_od\npoints: [{name: a_b, seed: 1}, {name: a.b}]\n")
    said = manifest("two.yaml", *PATHS, status=2)
    assert "run_name: the runs a_b, a.b would all be the job s-a-b: choose other names" in said


def test_every_key_of_a_profile_is_taken_or_named() -> None:
    """A new key of the profile is mapped, or listed among those that Kubernetes has not."""
    from fusionseg.cluster.kubernetes.manifest import _ELSEWHERE
    from fusionseg.cluster.profile import _KUBERNETES

    assert set(ClusterConfig.model_fields) == _KUBERNETES | set(_ELSEWHERE) | {"launcher"}
