"""docs/scale.md: its recipes are what Ray and Kubernetes read, and run commands that there are."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import ray
import yaml

PAGE = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
RECIPES: list[dict[str, Any]] = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def recipe(key: str) -> dict[str, Any]:
    (found,) = [each for each in RECIPES if key in each]
    return found


def test_the_launcher_reads_the_recipe_of_machines() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    config = recipe("cluster_name")
    jsonschema.validate(config, schema)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


def test_a_pod_mounts_the_volumes_that_it_has_and_all_run_one_image() -> None:
    cluster = recipe("kind")["spec"]["rayClusterSpec"]
    templates = [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
    assert len({container["image"] for template in templates for container in template["containers"]}) == 1
    for template in templates:
        mounted = {mount["name"] for container in template["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["volumes"]}


def test_heads_have_no_cpus_for_workers() -> None:
    assert recipe("kind")["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "--num-cpus=0" in recipe("cluster_name")["head_start_ray_commands"][-1]


def test_versions_of_ray_are_one_that_the_extra_takes() -> None:
    named = set(re.findall(r"(?:ray:|==|rayVersion: \")(\d+\.\d+\.\d+)", PAGE))
    assert len(named) == 1
    assert tuple(map(int, named.pop().split("."))) <= tuple(map(int, version("ray").split(".")[:3]))
