"""What a comparison writes about itself: compare.json, and compare_run.json of every run.

    compare.json      {"version": 1, "config": the base config, "grid": {"methods", "splits",
                       "seeds", "axes"}, "runs": [{"name", "method", "split", "seed", "axes",
                       "overrides", "answer", "teacher", "cost": {"params", "macs", "train_macs"}}]}
    compare_run.json  {"status": "finished" | "failed" | "stopped" | "running", "error", "seconds",
                       "starts", "step"}

A workdir belongs to one base config and one set of axes. More methods, numbers of networks, seeds
and values of an axis extend it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import defaults
from jaxsplit.compare import names
from jaxsplit.compare.grid import Cost, Plan, Run, teacher_field, teacher_fields
from jaxsplit.errors import ConfigError, short
from jaxsplit.section import flat
from jaxsplit.teacher import NAME as TEACHER
from jaxsplit.workdir import files

NAME, OF_RUN = "compare.json", "compare_run.json"
VERSION = 1
FINISHED, FAILED, STOPPED, RUNNING = "finished", "failed", "stopped", "running"
# Fields of the base config that may differ from start to start: those that the grid sets, and those
# that change no result.
_FREE = ("method", "split", "seed", "divide", "divide_in", *teacher_fields(), "resume_with")
_FREE += tuple(
    field
    for field in config_lib.RUNTIME
    if field not in ("duration", "stop", "init_from", "divide_anyway", "eval.every", "mesh")
)


@dataclasses.dataclass(frozen=True)
class Status:
    """compare_run.json.

    error: one line; '' unless it failed.
    seconds: of training, summed over all starts.
    step: the step that was evaluated when it finished, else 0.
    """

    status: str = ""
    error: str = ""
    seconds: float = 0.0
    starts: int = 0
    step: int = 0


def read_status(folder: pathlib.Path) -> Status:
    """The status in a run's folder; an empty one if there is none that can be read."""
    try:
        found = json.loads((folder / OF_RUN).read_text())
        return Status(
            status=str(found["status"]),
            error=str(found["error"]),
            seconds=float(found["seconds"]),
            starts=int(found["starts"]),
            step=int(found["step"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Status()


def write_status(folder: pathlib.Path, status: Status) -> None:
    files.write_text(folder / OF_RUN, json.dumps(dataclasses.asdict(status)) + "\n")


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What compare.json holds; None: there is none.

    Raises:
      ConfigError: it cannot be read, or another version of jaxsplit wrote it.
    """
    path = workdir / NAME
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"version={found['version']!r}: must be {VERSION}")
        grid = found["grid"]
        lists = [grid["methods"], grid["splits"], grid["seeds"], found["runs"]]
        if not all(isinstance(x, list) for x in lists):
            raise ValueError("methods, splits, seeds and runs must be lists")
        if not all(isinstance(x, dict) for x in (found["config"], grid["axes"], *found["runs"])):
            raise ValueError("config, axes and each run must be objects")
        for run in found["runs"]:
            for key in ("name", "method", "split", "seed", "axes", "overrides"):
                if key not in run:
                    raise KeyError(key)
        return found
    except FileNotFoundError:
        return None
    except KeyError as error:
        why = f"{error.args[0]} is missing"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise ConfigError(f"{path}: cannot be read ({why}); choose another workdir")


def known_costs(workdir: pathlib.Path) -> dict[str, Cost]:
    """Name of a group -> its costs, as compare.json has them.

    Raises:
      ConfigError: as `read`.
    """
    found = read(workdir) or {"runs": []}
    costs = {}
    for run in found["runs"]:
        try:
            group = names.of_group(run["method"], run["split"], run["axes"])
            costs[group] = Cost(**run["cost"])
        except (KeyError, TypeError):
            continue
    return costs


def write(workdir: pathlib.Path, config: ConfigDict, plan: Plan) -> None:
    """Writes compare.json; keeps what it had of runs that have been started.

    Raises:
      ConfigError: as `made`.
    """
    files.write_text(workdir / NAME, json.dumps(made(workdir, config, plan), indent=1) + "\n")


def made(workdir: pathlib.Path, config: ConfigDict, plan: Plan) -> dict[str, Any]:
    """What `write` writes.

    Raises:
      ConfigError: it is of another grid, or a folder is of another run; names the fields that
        differ.
    """
    before = read(workdir)
    for run in plan.runs:
        _check_folder(workdir / run.name, run)
    now = {
        "version": VERSION,
        "config": json.loads(config.to_json()),
        "grid": {
            "methods": list(plan.grid.methods),
            "splits": list(plan.grid.splits),
            "seeds": list(plan.grid.seeds),
            "axes": {field: list(values) for field, values in plan.grid.axes.items()},
            "teacher": ":".join(map(str, plan.grid.teacher or ())),
        },
        "runs": [entry_of(run) for run in plan.runs],
    }
    if before is not None:
        _check_same(workdir, before, now)
        now = _extended(workdir, before, now)
    return now


def entry_of(run: Run) -> dict[str, Any]:
    """What compare.json says of a run."""
    group = run.group
    return {
        "name": run.name,
        "method": group.method,
        "split": group.split,
        "seed": run.seed,
        "axes": dict(group.axes),
        "overrides": dict(run.overrides),
        "answer": run.answer,
        "teacher": run.teacher,
        "cost": dataclasses.asdict(group.cost),
    }


def _check_same(workdir: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError where the base config or the axes are not those of the workdir."""
    axes = [list(record["grid"]["axes"]) for record in (before, now)]
    if sorted(axes[0]) != sorted(axes[1]):
        there, here = (", ".join(names) or "none" for names in axes)
        raise ConfigError(
            f"workdir={str(workdir)!r}: holds another comparison; its axes are {there}, not {here}"
        )
    default = _plain(json.loads(defaults.get_config().to_json()))
    old, new = (default | _plain(record["config"]) for record in (before, now))
    if differ := _differing(old, new, (*_FREE, *axes[0])):
        raise ConfigError(f"workdir={str(workdir)!r}: holds another comparison: {differ}")


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> str:
    """In words: the fields that differ, without those of `free` and of groups in it."""
    return "; ".join(
        f"{field}={short(old.get(field))} there, {short(new.get(field))} here"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
        and not any(field == f or field.startswith(f"{f}.") for f in free)
    )


def _plain(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of the fields in config.json."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _plain(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _extended(workdir: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now` with what there was before of runs that have a folder."""
    names = {run["name"]: run for run in now["runs"]}
    kept = []
    for run in before["runs"]:
        again = names.get(run["name"])
        if again is None and (workdir / str(run["name"])).is_dir():
            kept.append(run)
        elif again is not None:
            _check_run(workdir, run, again)
    runs = sorted([*kept, *now["runs"]], key=lambda run: run["seed"])
    grids = before["grid"], now["grid"]
    grid: dict[str, Any] = {
        name: _union(grids[1][name], [run[one] for run in kept])
        for name, one in (("methods", "method"), ("splits", "split"), ("seeds", "seed"))
    }
    grid["axes"] = {
        field: _union(its, [run["axes"][field] for run in kept if field in run["axes"]])
        for field, its in grids[1]["axes"].items()
    }
    grid["teacher"] = now["grid"]["teacher"] or before["grid"].get("teacher", "")
    return now | {"grid": grid, "runs": runs}


def _union(one: list, other: list) -> list:
    return [*one, *(x for i, x in enumerate(other) if x not in one and x not in other[:i])]


def _check_run(workdir: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError if a run of one name has other fields than before."""
    old, new = json.loads(json.dumps([before["overrides"], now["overrides"]]))
    folder = workdir / before["name"]
    if not folder.is_dir():
        return
    if differ := _differing(old, new, teacher_fields()):
        raise ConfigError(f"workdir={str(folder)!r}: holds another run: {differ}")
    # By name: the folder of the comparison may have moved.
    theirs, ours = before.get("teacher") or "", now["teacher"]
    if theirs != ours:
        raise ConfigError(
            f"workdir={str(folder)!r}: holds another run: its teacher is {theirs or 'none'} there, "
            f"{ours or 'none'} here; --compare.teacher=METHOD:SPLIT chooses it"
        )


def _check_folder(folder: pathlib.Path, run: Run) -> None:
    """Checks that a run's folder, if it holds a run, holds this one.

    Raises:
      ConfigError: it does not; names the fields that differ.
    """
    if not (folder / config_lib.CONFIG_FILE).exists():
        return
    old, new = dict(flat(config_lib.load(folder))), dict(flat(run.config))
    free = {*config_lib.RUNTIME, *teacher_fields()} - {"duration"}
    if differ := _differing(old, new, tuple(free)):
        raise ConfigError(f"workdir={str(folder)!r}: holds another run: {differ}")
    field = teacher_field(run.group.method)
    if field and not run.teacher:
        _check_teacher(folder, field, new[field])


def _check_teacher(folder: pathlib.Path, field: str, given: str) -> None:
    """Checks that a pupil's teacher, a run outside of the grid, was one of the given kind.

    Raises:
      ConfigError: it was another; a pupil that resumes compares the weights as well.
    """
    try:
        before = json.loads((folder / TEACHER).read_text())
        its = config_lib.load(given)
        old, new = ([one[key] for key in ("arch", "split", "method")] for one in (before, its))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # not trained yet, or refused when it resumes
    if old != new:
        there, here = (f"{method} of {arch}, split={split}" for arch, split, method in (old, new))
        raise ConfigError(
            f"workdir={str(folder)!r}: holds another run: its teacher was {there}; "
            f"{field}={given!r} is {here}"
        )
