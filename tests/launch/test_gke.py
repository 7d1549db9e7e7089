"""The manifests for GKE against JobSet's own schema and rules, and the files of the image."""

import fnmatch
import json
import pathlib
import re
import shutil
import string
import subprocess
import sys
import tomllib

import jsonschema
import pytest
import yaml

from tests.support.launch import LAUNCH, ROOT

MANIFESTS = ("gke_jobset.yaml", "gke_jobset_gpu.yaml")

# ---- Manifests


def strict(schema):
    """A schema of Kubernetes with fields that it does not name forbidden, as kubectl has it."""
    if isinstance(schema, list):
        return [strict(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    named = schema.get("properties")
    result = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if isinstance(named, dict):
        result["properties"] = {key: strict(value) for key, value in named.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="module")
def validator():
    crd = json.loads((ROOT / "tests" / "golden" / "jobset_crd.json").read_text())
    schema = strict(crd["schema"])
    # What every object of Kubernetes has; the definition leaves it open.
    text = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {"name": text, "namespace": text, "labels": texts, "annotations": texts},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def manifest(name: str) -> dict:
    """A manifest as envsubst leaves it."""
    text = "".join(
        line
        for line in (LAUNCH / name).read_text().splitlines(keepends=True)
        if not line.startswith("#")
    )
    values = {
        "NAME": "c100",
        "IMAGE": "registry/jaxsplit:1",
        "CONFIG": "configs/cifar100.py:arch=resnet110,split=2",
        "CLAIM": "share",
    }
    assert set(re.findall(r"\$\{?(\w+)", text)) == set(values)
    (document,) = yaml.safe_load_all(string.Template(text).substitute(values))
    return document


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_fits_the_strict_schema(validator, name):
    document = manifest(name)
    assert [e.message for e in validator.iter_errors(document)] == []
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and document["kind"] == "JobSet"


@pytest.mark.parametrize(
    "where, value",
    [
        ("spec.failurePolicy.maxRestart", 1),  # misspelt
        ("spec.failurePolicy.maxRestarts", "4"),  # a text
        ("spec.failurePolicy.rules.0.action", "Restart"),
        ("spec.replicatedJobs.0.template.podFailurePolicy", {"rules": []}),  # one level too high
        ("spec.replicatedJobs.0.template.spec.template.spec.nodeselector", {}),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.arg", []),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.args.0", 1),
        ("metadata.name", "Upper_case"),
    ],
)
def test_the_schema_is_strict(validator, where, value):
    document = manifest("gke_jobset.yaml")
    *path, last = where.split(".")
    at = document
    for key in path:
        at = at[int(key) if key.isdigit() else key]
    at[int(last) if last.isdigit() else last] = value
    assert not validator.is_valid(document)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_says_what_the_schema_cannot(name):
    document = manifest(name)
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    # One pod a host, all at once, none replaced alone.
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    workdir = next(a for a in container["args"] if a.startswith("--workdir="))
    shared = {v["name"]: v for v in pod["volumes"]}["share"]
    mounted = next(m for m in container["volumeMounts"] if m["name"] == "share")["mountPath"]
    assert workdir == f"--workdir={mounted}/runs/c100"
    assert shared["persistentVolumeClaim"]["claimName"] == "share"
    if name == "gke_jobset.yaml":
        side = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
        chips = side[0] * side[1]
        placement = document["metadata"]["annotations"]
        topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        assert placement == {topology: "cloud.google.com/gke-nodepool"}
        assert job["parallelism"] * resources["limits"]["google.com/tpu"] == chips
    else:
        env = {e["name"]: e for e in container["env"]}
        assert int(env["JAX_NUM_PROCESSES"]["value"]) == job["parallelism"]
        # <jobset>-<replicated job>-<job>-<pod>.<subdomain>; the subdomain is the JobSet's name.
        host = f"c100-{replicated['name']}-0-0.c100"
        assert env["JAX_COORDINATOR_ADDRESS"]["value"].split(":")[0] == host
        index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    "status, action",
    [
        (75, "RestartJobSetAndIgnoreMaxRestarts"),
        ("DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
        (2, "FailJobSet"),
        (1, None),  # JobSet's default: a restart that counts
        (13, None),
        (137, None),
        (25, None),
    ],
)
def test_what_follows_a_failure(name, status, action):
    """The policies of Job and JobSet, evaluated as their controllers do: first match."""
    spec = manifest(name)["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    reason = message = ""
    for at, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        end = f"matching FailJob rule at index {at}"
        if codes and status in codes["values"]:
            assert codes["operator"] == "In" and codes["containerName"] == container["name"]
            message = f"Container main for pod default/c100 failed with exit code {status} {end}"
        if status in [c["type"] for c in conditions if c["status"] == "True"]:
            message = f"Pod default/c100 has condition {status} {end}"
        if message:
            reason = "PodFailurePolicy"
            break
    policy = spec["failurePolicy"]
    names = [rule["name"] for rule in policy["rules"]]
    assert len(set(names)) == len(names)
    # What JobSet's webhook accepts as a name.
    assert all(re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", name) for name in names)
    chosen = None
    for rule in policy["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            chosen = rule["action"]
            break
    assert chosen == action and policy["maxRestarts"] > 0


# ---- The image


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest) of launch/Dockerfile, continued lines joined."""
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def copied() -> dict[str, str]:
    """Sources of COPY -> where they go, below the working directory."""
    result = {}
    for instruction, rest in dockerfile():
        if instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                whole = target.endswith("/")
                result[source] = target + pathlib.Path(source).name if whole else target
    return result


def test_dockerfile():
    kinds = [kind for kind, _ in dockerfile()]
    assert set(kinds) == {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENTRYPOINT"}
    assert kinds[0] == "FROM" and kinds[-1] == "ENTRYPOINT"
    image = dict(dockerfile())["FROM"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.fullmatch(r"python:3\.(\d+)-slim", image)
    classifier = f"Programming Language :: Python :: 3.{version[1]}"
    assert classifier in project["classifiers"]
    # As a list: a shell as first process would not pass signals on.
    entry = json.loads(dict(dockerfile())["ENTRYPOINT"])
    assert entry == ["tini", "--", "python", "main.py"]
    runs = [rest for kind, rest in dockerfile() if kind == "RUN"]
    assert any("tini" in rest for rest in runs)
    assert any("-c constraints.txt" in rest and '"jax[${JAX}]"' in rest for rest in runs)


def test_the_image_has_every_file_it_needs(tmp_path):
    files = copied()
    assert len(files) >= 7
    for source in files:
        assert (ROOT / source).exists(), source
    # What setup reads comes before the installation.
    steps = [rest for _, rest in dockerfile()]
    install = next(i for i, rest in enumerate(steps) if rest.startswith("pip install"))
    before = " ".join(steps[:install])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in (project["readme"], *project["license-files"], "jaxsplit/__init__.py"):
        assert needed in files and needed in before, needed
    # What Docker does not get, it cannot copy.
    rules = (LAUNCH / "Dockerfile.dockerignore").read_text().split("\n")
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules
    for source in files:
        top = source.split("/")[0]
        assert any(fnmatch.fnmatch(top, rule) for rule in kept), source
    # From these files alone the program starts.
    for source, target in files.items():
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, tmp_path / target, ignore=ignored, dirs_exist_ok=True)
        else:
            (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / target)
    code = "import main, jaxsplit, configs.cifar100; print(main.__file__, jaxsplit.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / "main.py"),
        str(tmp_path / "jaxsplit" / "__init__.py"),
    ]
