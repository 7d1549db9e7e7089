"""The method of docs/extending.md, as a user would write it."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_method_in_thirty_lines(tmp_path):
    section = (ROOT / "docs" / "extending.md").read_text().split("## A method of your own")[1]
    code = re.search("```python\n(.*?)```", section, re.DOTALL)[1]
    assert sum(map(bool, map(str.strip, code.splitlines()))) <= 30
    path = tmp_path / "my_method.py"
    path.write_text(code)
    command = [sys.executable, "main.py", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    small = {
        "arch": "wide_resnet10_1",
        "split": 2,
        "divide": False,
        "duration": "'2 epochs'",
        "batch_size": 128,
        "mesh.data": 1,
        "lowering": "dense",
        "log_every": "'1 steps'",
    }
    command += [f"--config.{name}={str(value).strip(chr(39))}" for name, value in small.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 x wide_resnet10_1, my_method; checkpoint step 22, the last" in done.stdout
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [line for line in map(json.loads, lines) if "train/loss" in line]
    weights = [line["train/weight"] for line in trained]
    assert weights == pytest.approx([step / 22 for step in range(22)])
    for line in trained:
        terms = [line[f"train/net{i}/to_ensemble"] for i in range(2)]
        entropies = [line[f"train/net{i}/cross_entropy"] for i in range(2)]
        total = sum(entropies) + line["train/weight"] * sum(terms)
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
