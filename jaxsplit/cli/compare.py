"""`jaxsplit compare`, main.py --mode=compare: one experiment by several methods."""

import contextlib
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from jaxsplit.cli import pages, run_flags
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from jaxsplit.compare import grid, runner

_METHODS = flags.DEFINE_string(
    "compare.methods", "single,independent,cotrain", "for compare: methods, with commas"
)
_SPLITS = flags.DEFINE_string(
    "compare.splits", "1,2,4", "for compare: numbers S of networks, with commas"
)
_SEEDS = flags.DEFINE_string(
    "compare.seeds", "3", "for compare: how many, from config.seed on; or a list as 5,7"
)
_AXIS = flags.DEFINE_multi_string(
    "compare.axis",
    [],
    "for compare: a field of the config and its values, as cotrain.weight=0,0.5; if a value has "
    "commas, ';' stands between values; can be repeated",
)
_TEACHER = flags.DEFINE_string(
    "compare.teacher",
    None,
    "for compare: METHOD:SPLIT whose run of the same seed teaches distill_from; default: the "
    "largest split of the config's own method, else of one that divides",
)
_BUDGET = flags.DEFINE_string(
    "compare.budget",
    None,
    "for compare: time after which it stops in order, as '3 hours' or '40 minutes'",
)
_DEVICES = flags.DEFINE_string(
    "compare.devices",
    "",
    "for compare: so many runs at a time, each on one accelerator; or all; default: one run at a "
    "time on all devices",
)
_PER_DEVICE = flags.DEFINE_integer(
    "compare.per_device",
    1,
    "for compare: so many runs at a time on each GPU, which small networks leave idle",
)
_LATENCY = flags.DEFINE_string(
    "compare.latency",
    "1,64",
    "for compare: batch sizes of the latency, which one run of each group gets; '': none",
)
_DRY = flags.DEFINE_boolean(
    "dry-run", False, "for compare: print the runs with costs and expected time; nothing is trained"
)
FLAGS = (_METHODS, _SPLITS, _SEEDS, _AXIS, _TEACHER, _BUDGET, _DEVICES, _PER_DEVICE, _LATENCY, _DRY)
VALUES = {
    "compare.methods": "NAMES",
    "compare.splits": "NUMBERS",
    "compare.seeds": "N",
    "compare.axis": "FIELD=VALUES",
    "compare.teacher": "METHOD:S",
    "compare.budget": "TIME",
    "compare.devices": "N",
    "compare.per_device": "N",
    "compare.latency": "SIZES",
    "dry-run": "",
}
PAGE = pages.Page(
    usage="jaxsplit compare --config=NAME|FILE --workdir=DIR [--compare.FLAG=VALUE ...] "
    "[--dry-run]",
    about="""Trains, evaluates and times one experiment by several methods, numbers of networks and
seeds, each run in a workdir of its own below DIR and in processes of its own.

single is one undivided network. Methods whose answer is an ensemble divide it in S; methods that
keep one network train S undivided ones. Combinations that make no sense are left out.

The same command goes on where it was stopped, by Ctrl-C, SIGTERM, SIGKILL or --compare.budget.
More methods, numbers, seeds and values of an axis extend the grid; failed runs are tried again.
The exit status is 1 if a run failed.""",
    flags={"config": "NAME|FILE", "workdir": "DIR"} | VALUES,
    examples=(
        "jaxsplit compare --config=digits_wrn16_4_x4 --workdir=runs/compare --dry-run",
        "jaxsplit compare --config=digits_wrn16_4_x4 --workdir=runs/compare \\\n"
        "      --compare.methods=single,cotrain --compare.splits=1,2 --compare.budget='3 hours'",
        "jaxsplit compare --config=digits_wrn16_4_x4 --workdir=runs/weights \\\n"
        "      --compare.methods=cotrain --compare.axis=cotrain.weight=0,0.1,0.5",
    ),
    more=run_flags.overrides_and_experiments,
)


def run(config: ConfigDict, workdir: str) -> None:
    """The mode.

    Raises:
      ConfigError: wrong flags, no run is left, or the workdir holds another comparison.
      Stopped: by a signal; the runs are saved.
      SystemExit: with status 1; a run failed, the others are done.
    """
    import jax

    from jaxsplit.compare import devices, record, runner
    from jaxsplit.compare import flags as texts
    from jaxsplit.report import compare as page

    if not _DRY.value:  # the accelerators are for the runs
        jax.config.update("jax_platforms", "cpu")
    grid = texts.grid(
        config,
        methods=_METHODS.value,
        splits=_SPLITS.value,
        seeds=_SEEDS.value,
        axes=_AXIS.value,
        teacher=_TEACHER.value,
    )
    budget, batches = texts.budget(_BUDGET.value), texts.batches(_LATENCY.value)
    environments = devices.environments(_DEVICES.value, _PER_DEVICE.value)
    folder = _folder(workdir)
    plan = _plan(config, grid, folder)
    if not config.divide and (divided := [g.name for g in plan.groups if g.overrides["divide"]]):
        _say(
            "divide=False does not hold where an ensemble answers: these divide the network, so "
            f"that all cost about the same: {', '.join(divided)}"
        )
    if _DRY.value:
        record.made(folder, config, plan)  # it would be refused
        _forecast(config, plan)
    else:
        settings = runner.Settings(
            config=run_flags.of_config(),
            environments=environments,
            budget=budget,
            batches=batches,
            after_run=page.write,
        )
        _run(config, plan, folder, settings)


def _plan(config: ConfigDict, asked: "grid.Grid", folder: pathlib.Path) -> "grid.Plan":
    from jaxsplit import expected
    from jaxsplit.compare import grid, record

    return grid.plan(
        config,
        asked,
        expected.cost,
        lambda name: str(folder / name),
        record.known_costs(folder),
    )


def _folder(workdir: str) -> pathlib.Path:
    from jaxsplit.workdir import files

    folder = files.path_of(workdir)
    if files.is_remote(folder):
        raise ConfigError(f"workdir={workdir!r}: must be a local directory")
    if (folder / "config.json").exists():
        raise ConfigError(f"workdir={workdir!r}: holds a run; a comparison needs its own")
    return folder


def _forecast(config: ConfigDict, plan: "grid.Plan") -> None:
    """Prints what a dry run prints; the compiled programs stay for the runs."""
    from jaxsplit import expected
    from jaxsplit.compare import forecast, grid
    from jaxsplit.workdir import compile_cache

    def of(group: grid.Group) -> ConfigDict:
        return grid.changed(config, group.overrides)

    def measure(group: grid.Group) -> tuple[float, float, int]:
        found = expected.pace(of(group))
        return found.step, found.compilation, found.steps

    times = {}
    if expected.steps(of(plan.groups[0])) is None:
        print("the number of training images is not known, so no time is expected", flush=True)
    else:
        with compile_cache.kept():
            times = forecast.times(
                plan, measure, lambda group: expected.steps(of(group)) or 0, say=_say
            )
    print(forecast.table(plan, times))


def _run(
    config: ConfigDict,
    plan: "grid.Plan",
    folder: pathlib.Path,
    settings: "runner.Settings",
) -> None:
    from jaxsplit import config as config_lib
    from jaxsplit.compare import record, runner
    from jaxsplit.hosts import signals
    from jaxsplit.workdir import lock

    with contextlib.ExitStack() as at_end:
        config_lib.prepare_workdir(folder, lock.held(at_end, _say))
        record.write(folder, config, plan)
        for one in plan.left_out:
            _say(f"left out: {one.name}: {one.reason}")
        with signals.Stop() as stop:
            stop.hold()
            found = runner.run(plan, folder, settings, stop, _say)
            _conclude(plan, folder, found)
            if found.why == "a signal":
                left = f"{len(found.left)} of {len(plan.runs)} runs are left"
                raise stop.stopped(f"{left}; {signals.AGAIN}")
    if found.failed or (found.left and not found.why):
        sys.exit(1)


def _conclude(plan: "grid.Plan", folder: pathlib.Path, found: "runner.Outcome") -> None:
    """Says what became of the runs, and the answer as far as they tell it."""
    from jaxsplit.compare import collect, verdict
    from jaxsplit.report import compare as page

    if found.finished:
        answer = verdict.of(collect.read(folder)).text
        _say(f"\n{answer}\n\n{folder / page.FILE}\n{folder / collect.GROUPS}\n")
    _say(f"{len(found.finished)} of {len(plan.runs)} runs are finished")
    if found.left:
        why = f" ({found.why} ended the comparison)" if found.why else ""
        _say(f"left{why}: {', '.join(found.left)}; the same command goes on with them")
    for name, error in found.failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, flush=True)
