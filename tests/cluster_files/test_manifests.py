"""The KubeRay manifests: what a server would accept, and what they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster_files.kuberay import manifests, problems, read
from vrray.options import parse_options
from vrray.specs import SweepSpec

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
FILES = manifests(FOLDER)
JOB, CLUSTER = FILES["rayjob-sweep.yaml"][0], FILES["raycluster.yaml"][0]
CLUSTERS = {"rayjob-sweep.yaml": JOB["spec"]["rayClusterSpec"], "raycluster.yaml": CLUSTER["spec"]}
SHARED = "/mnt/vrray"


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def changed(place: str, *value: Any) -> list[str]:
    """The problems of the job with another value at a place; without the place where no value is given."""
    document = json.loads(json.dumps(JOB))  # a copy in which no two places share a value
    at: Any = document
    *way, last = place.split(".")
    for step in way:
        at = at[int(step) if step.isdigit() else step]
    if value:
        at[last] = value[0]
    else:
        del at[last]
    return problems(document)


def test_a_server_accepts_every_manifest() -> None:
    assert {name: [document["kind"] for document in documents] for name, documents in FILES.items()} == {
        "raycluster.yaml": ["RayCluster"],
        "rayjob-sweep.yaml": ["RayJob"],
        "shared.yaml": ["PersistentVolumeClaim", "ConfigMap"],
    }
    assert {name: [problems(document) for document in documents] for name, documents in FILES.items()} == {
        "raycluster.yaml": [[]],
        "rayjob-sweep.yaml": [[]],
        "shared.yaml": [[], []],
    }


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("spec.ttlSecondAfterFinished", 5, "'ttlSecondAfterFinished' was unexpected"),
        ("spec.backoffLimit", "3", "'3' is not of type 'integer'"),
        ("spec.shutdownAfterJobFinishes", "yes", "'yes' is not of type 'boolean'"),
        ("spec.submissionMode", "K8SJobMode", "'K8SJobMode' is not one of"),
        ("apiVersion", "ray.io/v1alpha1", "'ray.io/v1alpha1' is not one of"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("spec.rayClusterSpec.authOption", {"mode": "token"}, "'authOption' was unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", -1, "less than the minimum"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.rayStartParams", {"num-cpus": 4}, "4 is not of type 'string'"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.comand", ["x"], "'comand' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0.value", 1, "1 is not of type 'string'"),
        (
            "spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.persistentVolumeClaim",
            {},
            "'claimName' is a required",
        ),
        ("metadata.labels", ["x"], "['x'] is not of type 'object'"),
    ],
)
def test_a_wrong_field_is_refused(place: str, value: Any, problem: str) -> None:
    (found,) = changed(place, value)
    assert problem in found


@pytest.mark.parametrize(
    "place", ["spec.rayClusterSpec.headGroupSpec", "spec.rayClusterSpec.workerGroupSpecs.0.groupName"]
)
def test_a_missing_field_is_refused(place: str) -> None:
    (found,) = changed(place)
    assert found.endswith(f"'{place.rpartition('.')[2]}' is a required property")


def test_a_key_that_is_there_twice_is_refused() -> None:
    text = (FOLDER / "raycluster.yaml").read_text()
    with pytest.raises(yaml.YAMLError, match="'rayVersion' is there twice"):
        read(text.replace("  rayVersion:", '  rayVersion: "2.60.0"\n  rayVersion:', 1))


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_the_operator_would_start_the_cluster(cluster: dict[str, Any]) -> None:
    """What KubeRay checks besides the types of fields."""
    assert cluster["authOptions"] == {"mode": "token"}
    assert [int(part) for part in cluster["rayVersion"].split(".")] >= [2, 52, 0]  # the first with tokens
    assert cluster["enableInTreeAutoscaling"]
    for name, group in groups(cluster).items():
        spec = group["template"]["spec"]
        assert spec.get("restartPolicy", "Never") == "Never"  # as the autoscaler's second version demands
        if name != "head":
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["minReplicas"] < group["maxReplicas"]


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_every_pod_sees_the_shared_volume_at_one_place_and_is_not_root(cluster: dict[str, Any]) -> None:
    claim = FILES["shared.yaml"][0]["metadata"]["name"]
    assert FILES["shared.yaml"][0]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert set(groups(cluster)) == {"head", "gpu", "cpu"}
    for name, group in groups(cluster).items():
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts[SHARED]["persistentVolumeClaim"] == {"claimName": claim}
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment["VRRAY_HOME"].startswith(f"{SHARED}/")
        assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
        assert spec["terminationGracePeriodSeconds"] > int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu")


def test_the_sweep_of_the_job_can_run_on_its_cluster(tmp_path: Path) -> None:
    options = FILES["shared.yaml"][1]
    head = JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [
        volume for volume in head["volumes"] if volume.get("configMap") == {"name": options["metadata"]["name"]}
    ]
    (mount,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
    _, script, flag, path = JOB["spec"]["entrypoint"].split()
    assert (script, flag) == ("/opt/vrray/jobs/sweep.py", "--config")
    (file,) = options["data"]
    assert path == f"{mount['mountPath']}/{file}"

    (tmp_path / file).write_text(options["data"][file])
    spec = parse_options(SweepSpec, "", ["--config", str(tmp_path / file)])
    assert spec.storage.startswith(f"{SHARED}/")
    gpu = groups(JOB["spec"]["rayClusterSpec"])["gpu"]
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    seats = min(limits["nvidia.com/gpu"], int(limits["cpu"]) // spec.cpus_per_worker)
    assert gpu["minReplicas"] * seats >= spec.workers


def test_a_finished_job_takes_its_cluster_with_it_and_a_failed_one_is_repeated() -> None:
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert JOB["spec"]["ttlSecondsAfterFinished"] > 0
    assert JOB["spec"]["backoffLimit"] > 0
