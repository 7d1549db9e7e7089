"""The modes of main.py (--mode=MODE), and the verbs of `jaxsplit` that run them."""

import functools
import pathlib

from absl import app, flags
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import loop, memory
from jaxsplit.cli import compare, export, latency, pages, predict, report, run_flags
from jaxsplit.config import flag_files
from jaxsplit.errors import ConfigError
from jaxsplit.hosts import processes, signals
from jaxsplit.report import following, summary, views
from jaxsplit.report.memory import HOW_TO_COMPILE
from jaxsplit.run import say
from jaxsplit.weights import extract
from jaxsplit.workdir import compile_cache

_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "train, eval, report, compare, predict, export, latency, summary, show_views or export_leader",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "latest",
    "for eval, predict, export, latency and export_leader: latest, best or a step",
)
_TO = flags.DEFINE_string(
    "to",
    None,
    "for export and export_leader: the file or workdir to write; default: in WORKDIR/export, and "
    "WORKDIR/leader",
)
_OOD = flags.DEFINE_string(
    "eval.ood", None, "for eval: another data set, to be told from the test set by uncertainty"
)
_CORRUPTIONS = flags.DEFINE_boolean(
    "eval.corruptions", None, "for eval: also the test images under 15 corruptions, 5 severities"
)
# For processes on machines that no cluster manager connects; see `processes.initialize`.
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "for several processes: host:port that process 0 listens on"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "number of processes of the run; 1: this process alone"
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, counted from 0")
_COMPILE = flags.DEFINE_boolean(
    "compile",
    False,
    "for summary: also the memory of the compiled training and evaluation steps; takes minutes for "
    "large networks",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "for train: initial weights (config.init_from): a workdir (its newest checkpoint), its "
    "checkpoints/<step>, or PyTorch files separated by commas (with :ema at the end: the moving "
    "averages in them)",
)
# Flags of some modes only, with those modes.
_ONLY_IN = (
    (_INIT_FROM, "train"),
    (_CHECKPOINT, "eval", "predict", "export", "latency", "export_leader"),
    *((flag, "train", "eval") for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)),
    (_OOD, "eval"),
    (_CORRUPTIONS, "eval"),
    (_COMPILE, "summary"),
    (_TO, "export_leader", "export"),
    (predict.TEMPERATURE, "predict", "export"),
    (predict.CASCADE, "predict", "latency"),
    *((flag, "predict") for flag in predict.FLAGS),
    *((flag, "export") for flag in export.FLAGS),
    *((flag, "latency") for flag in latency.FLAGS),
    *((flag, "compare") for flag in compare.FLAGS),
)


def _evaluate(config: ConfigDict) -> None:
    if _OOD.value is not None:
        config.eval.ood = _OOD.value
    if _CORRUPTIONS.value is not None:
        config.eval.corruptions = _CORRUPTIONS.value
    loop.evaluate_checkpoint(config, _workdir(), _CHECKPOINT.value)


def _workdir() -> str:
    return run_flags.WORKDIR.value or ""  # `main` refuses a mode that needs one and has none


def _train(config: ConfigDict) -> None:
    if _INIT_FROM.value is not None:
        config.init_from = _INIT_FROM.value
    with signals.Stop() as stop:
        loop.train_and_evaluate(config, _workdir(), stop)
    say(f"\nrun: {_workdir()}\n{following.of_workdir(_workdir(), 'eval', 'report')}")


def _summarize(config: ConfigDict) -> None:
    parts = [summary.of_config(config), memory.of_config(config)]
    programs = memory.of_programs(config) if _COMPILE.value else iter(())
    # All that can be wrong has been found, and compiling may take minutes.
    print("\n\n".join(parts), flush=True)
    if not _COMPILE.value:
        print(HOW_TO_COMPILE)
    with compile_cache.kept():
        for text in programs:
            print(f"\n{text}", flush=True)
    print(f"\n{_training()}")


def _draw_views(config: ConfigDict) -> None:
    print(views.views(config, _workdir()))
    print(_training())


def _training() -> str:
    """The line with the command that trains what this command line describes."""
    given = run_flags.of_config()
    name = pathlib.Path(_name(given)).stem
    workdir = _workdir() or f"runs/{name}"
    return following.line(["train", *given, f"--workdir={workdir}"])


def _name(given: list[str]) -> str:
    """What --config names, without its arguments."""
    value = config_lib.flags_given(["", *given]).get("config", "")
    return value.partition(":")[0]


MODES = {
    "train": _train,
    "eval": _evaluate,
    "predict": lambda config: predict.run(config, _workdir(), _CHECKPOINT.value),
    "export": lambda config: export.run(
        config, _workdir(), _CHECKPOINT.value, _TO.value, predict.TEMPERATURE.value
    ),
    "latency": lambda config: latency.run(
        config, _workdir(), _CHECKPOINT.value, predict.CASCADE.value
    ),
    "compare": lambda config: compare.run(config, _workdir()),
    "summary": _summarize,
    "export_leader": lambda config: print(
        extract.leader(config, _workdir(), _TO.value, _CHECKPOINT.value)
    ),
    "show_views": _draw_views,
}
# Verb -> mode, where their names differ.
_MODE_OF = {"views": "show_views", "export-leader": "export_leader"}

_RUN = {"config": "NAME|FILE", "workdir": "DIR"}
_SHIFTS = {"eval.ood": "DATASET", "eval.corruptions": "True"}
_PROCESSES = {"coordinator": "HOST:PORT", "num_processes": "N", "process_id": "N"}
_OVERRIDES = "[--config.FIELD=VALUE ...]"
PAGES = {
    "train": pages.Page(
        usage=f"jaxsplit train --config=NAME|FILE --workdir=DIR {_OVERRIDES}",
        about="""Trains a run, or resumes it from its workdir, then evaluates it.

Without --config the config saved in the workdir is used.""",
        flags=_RUN | {"init_from": "WEIGHTS"} | _PROCESSES,
        examples=(
            "jaxsplit train --config=digits_wrn16_4_x4 --workdir=runs/digits",
            "jaxsplit train --config=cifar100:arch=resnet110,split=2 --workdir=runs/c100 \\\n"
            "      --config.batch_size=64",
            "jaxsplit train --workdir=runs/digits   # resume",
        ),
        more=run_flags.overrides_and_experiments,
    ),
    "eval": pages.Page(
        usage=f"jaxsplit eval --workdir=DIR {_OVERRIDES}",
        about="""Evaluates a checkpoint of a run: prints tables of its networks, writes
WORKDIR/eval.json (every score) and WORKDIR/predictions.npz (logits).""",
        flags=_RUN | {"checkpoint": "STEP"} | _SHIFTS | _PROCESSES,
        examples=(
            "jaxsplit eval --workdir=runs/digits --checkpoint=best",
            "jaxsplit eval --workdir=runs/c10 --eval.ood=svhn_cropped --eval.corruptions=True",
            "jaxsplit eval --workdir=runs/digits --config.eval.ensemble=max_probs",
        ),
    ),
    "predict": predict.PAGE,
    "export": export.PAGE,
    "latency": latency.PAGE,
    "compare": compare.PAGE,
    "summary": pages.Page(
        usage=f"jaxsplit summary --config=NAME|FILE {_OVERRIDES}",
        about="",
        flags=_RUN | {"compile": ""},
        examples=(),
    ),
    "views": pages.Page(
        usage=f"jaxsplit views --config=NAME|FILE --workdir=DIR {_OVERRIDES}",
        about="""Draws the first training images and the augmented views of them that the networks
see, as WORKDIR/views.png.""",
        flags=_RUN,
        examples=("jaxsplit views --config=digits_wrn16_4_x4 --workdir=runs/digits",),
        more=run_flags.overrides_and_experiments,
    ),
    "export-leader": pages.Page(
        usage="jaxsplit export-leader --workdir=DIR [--to=DIR] [--checkpoint=STEP]",
        about="Writes the leader of an FFSD run, one network, into a workdir of its own.",
        flags=_RUN | {"to": "DIR", "checkpoint": "STEP"},
        examples=("jaxsplit export-leader --workdir=runs/ffsd --checkpoint=best",),
    ),
    "": pages.Page(
        usage=f"python main.py --config=NAME|FILE --workdir=DIR [--mode=MODE] {_OVERRIDES}",
        about="""Trains a run (or resumes it) and evaluates it, or does what --mode says.

Without --config the config saved in the workdir is used. `jaxsplit VERB` is the same program.""",
        flags=_RUN
        | {"mode": "MODE", "init_from": "WEIGHTS", "checkpoint": "STEP", "to": "DIR", "compile": ""}
        | _SHIFTS
        | predict.VALUES
        | export.VALUES
        | latency.VALUES
        | compare.VALUES
        | _PROCESSES,
        examples=(
            "python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits",
            "python main.py --mode=eval --workdir=runs/digits --checkpoint=best",
            "python main.py --mode=report --workdir=runs/digits,runs/other",
            "python main.py --mode=compare --config=digits_wrn16_4_x4 --workdir=runs/compare",
            "python main.py --mode=predict --workdir=runs/digits --images=photos",
            "python main.py --mode=export --workdir=runs/digits --format=stablehlo",
            "python main.py --mode=summary --config=configs/imagenet_seresnet101_x4.py",
            "python main.py --mode=show_views --config=digits_wrn16_4_x4 --workdir=runs/digits",
            "python main.py --mode=export_leader --workdir=runs/ffsd",
        ),
        more=run_flags.overrides_and_experiments,
    ),
}


def run(argv: list[str], verb: str = "") -> int:
    """Runs a verb; '' is main.py. `argv`: the program's name and the arguments after the verb."""
    if not verb and (given := _for_report(argv)) is not None:
        return report.main(given)
    app.run(
        functools.partial(main, verb=verb),
        argv=argv,
        flags_parser=functools.partial(parse, verb=verb),
    )
    return 0


def _for_report(argv: list[str]) -> list[str] | None:
    """The arguments, if they hold --mode=report: it takes several workdirs, and no config."""
    try:
        given = flag_files.expanded(argv[1:])
    except ConfigError:  # is told when the flags are parsed
        return None
    asked = config_lib.flags_given([argv[0], *given]).get("mode") == "report"
    return given if asked and not pages.asked_for(given) else None


def parse(argv: list[str], verb: str = "") -> list[str]:
    """Parses the flags; returns the program's name."""
    return run_flags.parse(argv, PAGES[verb])


def main(_: list[str], verb: str = "") -> None:
    """Runs the mode of a parsed command line."""
    with run_flags.errors_in_one_line():
        if verb:
            _check_flags(verb)
        mode = _MODE_OF.get(verb, verb) or _MODE.value
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r}: must be one of {', '.join([*MODES, 'report'])}")
        if mode not in ("summary", "latency") and not run_flags.WORKDIR.value:
            raise ConfigError(f"workdir: must be given with {verb or f'--mode={mode}'}")
        for flag, *modes in _ONLY_IN:
            if flag.present and mode not in modes:
                allowed = " or ".join(f"--mode={m}" for m in modes)
                raise ConfigError(f"{flag.name}: only with {allowed}, not {mode}")
        if mode in ("train", "eval"):
            processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if mode not in ("summary", "latency"):  # the others write files, which count more
            signals.ignore_lost_readers()
        MODES[mode](run_flags.CONFIG.value)


def _check_flags(verb: str) -> None:
    """Raises ConfigError for a flag of another verb."""
    shared = (_MODE, _CHECKPOINT, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
    for flag in (*shared, *(flag for flag, *_ in _ONLY_IN)):
        if flag.present and flag.name not in PAGES[verb].flags:
            known = ", ".join(PAGES[verb].flags)
            raise ConfigError(
                f"{flag.name}={flag.value!r}: is no flag of `{verb}`, which has {known}"
            )
