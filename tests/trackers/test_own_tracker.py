"""The tracker of docs/monitoring.md, as a user would write it."""

import importlib.util
import re

from jaxsplit import config as config_lib
from jaxsplit import trackers
from tests.support.paths import ROOT


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "TRACKERS", dict(trackers.TRACKERS))
    section = (ROOT / "docs" / "monitoring.md").read_text().split("## A tracker of your own")[1]
    path = tmp_path / "my_tracker.py"
    path.write_text(re.search("```python\n(.*?)```", section, re.DOTALL)[1])
    spec = importlib.util.spec_from_file_location("my_tracker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = config_lib.check(module.get_config())
    trackers.check(config.trackers)
    said = []
    group = trackers.Group(["highest"], tmp_path, start=3, config=config, say=said.append)
    for step, value in ((4, 0.5), (5, 0.75), (6, 0.25)):
        group.write(step, {"test/top1": value})
    group.close()
    assert said == [f"highest values go to {tmp_path / 'highest.txt'}, from step 3 on"]
    assert (tmp_path / "highest.txt").read_text() == "test/top1 0.75\n"


def test_a_file_that_is_read_twice(tmp_path, monkeypatch):
    """A config file may be executed again in one process; its class is then another object."""
    monkeypatch.setattr(trackers, "TRACKERS", dict(trackers.TRACKERS))

    def make():
        class Mine:
            pass

        return Mine

    trackers.register("mine", make())
    again = make()
    trackers.register("mine", again)
    assert trackers.TRACKERS["mine"].make is again
