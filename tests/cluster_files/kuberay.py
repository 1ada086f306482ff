"""What a Kubernetes server with KubeRay 1.6.2 accepts under strict field validation, checked without a server.

Kubernetes' own types are the strict schemas that the package kubernetes-validate ships. Those of KubeRay are the fields
of its API reference for `ray.io/v1`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

KUBERNETES = "1.35"
_STRING, _WHOLE, _NUMBER, _BOOL = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
_WORDS = {"type": "object", "additionalProperties": _STRING}
_COUNT = {"type": "integer", "minimum": 0}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _our(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _core(name: str) -> dict[str, Any]:
    return _our(f"io.k8s.api.core.v1.{name}")


_POD = _core("PodTemplateSpec")
_DELETION = _one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
_MANAGER = _one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_GROUP = {"template!": _POD, "resources": _WORDS, "labels": _WORDS, "rayStartParams": _WORDS}

# Fields by type; what is required is marked by a name that ends in "!".
_KUBERAY: dict[str, dict[str, dict[str, Any]]] = {
    "RayJobSpec": {
        "activeDeadlineSeconds": _WHOLE,
        "backoffLimit": _COUNT,
        "rayClusterSpec": _our("RayClusterSpec"),
        "submitterPodTemplate": _POD,
        "metadata": _WORDS,
        "clusterSelector": _WORDS,
        "submitterConfig": _our("SubmitterConfig"),
        "managedBy": _MANAGER,
        "deletionStrategy": _our("DeletionStrategy"),
        "entrypoint": _STRING,
        "runtimeEnvYAML": _STRING,
        "jobId": _STRING,
        "submissionMode": _one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "entrypointResources": _STRING,
        "entrypointNumCpus": _NUMBER,
        "entrypointNumGpus": _NUMBER,
        "ttlSecondsAfterFinished": _COUNT,
        "preRunningDeadlineSeconds": {"type": "integer", "minimum": 1},
        "shutdownAfterJobFinishes": _BOOL,
        "suspend": _BOOL,
    },
    "RayClusterSpec": {
        "upgradeStrategy": _our("RayClusterUpgradeStrategy"),
        "authOptions": _our("AuthOptions"),
        "suspend": _BOOL,
        "managedBy": _MANAGER,
        "autoscalerOptions": _our("AutoscalerOptions"),
        "headServiceAnnotations": _WORDS,
        "enableInTreeAutoscaling": _BOOL,
        "gcsFaultToleranceOptions": _our("GcsFaultToleranceOptions"),
        "headGroupSpec!": _our("HeadGroupSpec"),
        "rayVersion": _STRING,
        "workerGroupSpecs": _list(_our("WorkerGroupSpec")),
    },
    "HeadGroupSpec": {
        **_GROUP,
        "headService": _core("Service"),
        "enableIngress": _BOOL,
        "serviceType": _STRING,
    },
    "WorkerGroupSpec": {
        **_GROUP,
        "groupName!": _STRING,
        "suspend": _BOOL,
        "replicas": _COUNT,
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "idleTimeoutSeconds": _COUNT,
        "scaleStrategy": _our("ScaleStrategy"),
        "numOfHosts": _WHOLE,
    },
    "AutoscalerOptions": {
        "resources": _core("ResourceRequirements"),
        "image": _STRING,
        "imagePullPolicy": _STRING,
        "securityContext": _core("SecurityContext"),
        "idleTimeoutSeconds": _COUNT,
        "upscalingMode": _one_of("Default", "Aggressive", "Conservative"),
        "version": _one_of("v1", "v2"),
        "env": _list(_core("EnvVar")),
        "envFrom": _list(_core("EnvFromSource")),
        "volumeMounts": _list(_core("VolumeMount")),
    },
    "AuthOptions": {"enableK8sTokenAuth": _BOOL, "secretName": _STRING, "mode": _one_of("disabled", "token")},
    "RayClusterUpgradeStrategy": {"type": _one_of("Recreate", "None")},
    "SubmitterConfig": {"backoffLimit": _COUNT},
    "ScaleStrategy": {"workersToDelete": _list(_STRING)},
    "DeletionStrategy": {
        "onSuccess": _our("DeletionPolicy"),
        "onFailure": _our("DeletionPolicy"),
        "deletionRules": {**_list(_our("DeletionRule")), "minItems": 1},
    },
    "DeletionPolicy": {"policy": _DELETION},
    "DeletionRule": {"policy!": _DELETION, "condition!": _our("DeletionCondition")},
    "DeletionCondition": {"jobStatus": _STRING, "jobDeploymentStatus": _STRING, "ttlSeconds": _COUNT},
    "GcsFaultToleranceOptions": {
        "redisUsername": _our("RedisCredential"),
        "redisPassword": _our("RedisCredential"),
        "externalStorageNamespace": _STRING,
        "redisAddress!": _STRING,
    },
    "RedisCredential": {"valueFrom": _core("EnvVarSource"), "value": _STRING},
    **{
        kind: {
            "apiVersion!": _one_of("ray.io/v1"),
            "kind!": _one_of(kind),
            "metadata!": _our("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            "spec!": _our(f"{kind}Spec"),
        }
        for kind in ("RayCluster", "RayJob")
    },
}


@cache
def _definitions() -> dict[str, Any]:
    folder = f"v{KUBERNETES}.0-local-strict"
    path = files("kubernetes_validate").joinpath("kubernetes-json-schema", folder, "_definitions.json")
    known: dict[str, Any] = json.loads(path.read_text())["$defs"]
    for name, fields in _KUBERAY.items():
        known[name] = {
            "type": "object",
            "properties": {field.rstrip("!"): schema for field, schema in fields.items()},
            "required": [field.rstrip("!") for field in fields if field.endswith("!")],
            "additionalProperties": False,
        }
    return known


class _NoDuplicates(yaml.SafeLoader):
    """As kubectl reads it: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(text: str) -> list[dict[str, Any]]:
    """The documents of a manifest.

    Raises:
        yaml.YAMLError: it is not valid, or a mapping has a key twice.
    """
    return list(yaml.load_all(text, _NoDuplicates))


def problems(document: dict[str, Any]) -> list[str]:
    """What a server would refuse, with its place; fields that it does not know among them."""
    kind = str(document.get("kind"))
    name = kind if kind in _KUBERAY else f"io.k8s.api.core.v1.{kind}"
    if name not in _definitions():
        return [f"unknown kind {kind}"]
    schema = {"$ref": f"#/$defs/{name}", "$defs": _definitions()}
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def manifests(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The documents of each manifest by file name."""
    return {path.name: read(path.read_text()) for path in sorted(folder.glob("*.yaml"))}
