"""What a run is asked to do: main.py --mode=MODE, and the verbs that are such modes."""

import functools

from absl import app, flags
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import loop
from jaxsplit.cli import pages, predict, report, run_flags
from jaxsplit.config import flag_files
from jaxsplit.errors import ConfigError
from jaxsplit.hosts import processes, signals
from jaxsplit.report import summary, views
from jaxsplit.weights import extract

_MODE = flags.DEFINE_string(
    "mode", "train", "train, eval, report, predict, summary, show_views or export_leader"
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "for eval, predict and export_leader: latest, best or a step"
)
_TO = flags.DEFINE_string(
    "to", None, "for export_leader: the leader's workdir; WORKDIR/leader if not given"
)
# Of several processes on machines that know nothing of each other; see `processes.initialize`.
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "of several processes: host:port that process 0 listens on"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "processes of the run; 1: this one alone"
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, from 0")
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "for train: weights to start from (config.init_from): a workdir (its newest checkpoint), its "
    "checkpoints/<step>, or files of PyTorch weights with commas between them (:ema behind them: "
    "the averages in them)",
)


def _workdir() -> str:
    return run_flags.WORKDIR.value or ""  # a mode that needs one is refused without


def _train(config: ConfigDict) -> None:
    if _INIT_FROM.value is not None:
        config.init_from = _INIT_FROM.value
    with signals.Stop() as stop:
        loop.train_and_evaluate(config, _workdir(), stop)


MODES = {
    "train": _train,
    "eval": lambda config: loop.evaluate_checkpoint(config, _workdir(), _CHECKPOINT.value),
    "predict": lambda config: predict.run(config, _workdir(), _CHECKPOINT.value),
    "summary": lambda config: print(summary.of_config(config)),
    "export_leader": lambda config: print(
        extract.leader(config, _workdir(), _TO.value, _CHECKPOINT.value)
    ),
    "show_views": lambda config: print(views.views(config, _workdir())),
}
# Verbs -> modes, where they are not called the same.
_MODE_OF = {"views": "show_views", "export-leader": "export_leader"}

_RUN = {"config": "NAME|FILE", "workdir": "DIR"}
_PROCESSES = {"coordinator": "HOST:PORT", "num_processes": "N", "process_id": "N"}
_OVERRIDES = "[--config.FIELD=VALUE ...]"
PAGES = {
    "train": pages.Page(
        usage=f"jaxsplit train --config=NAME|FILE --workdir=DIR {_OVERRIDES}",
        about="""Trains a run, or resumes it from its workdir, then evaluates it.

Without --config the config of the workdir holds.""",
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
        flags=_RUN | {"checkpoint": "STEP"} | _PROCESSES,
        examples=(
            "jaxsplit eval --workdir=runs/digits --checkpoint=best",
            "jaxsplit eval --workdir=runs/digits --config.eval.ensemble=max_probs",
        ),
    ),
    "predict": predict.PAGE,
    "summary": pages.Page(
        usage=f"jaxsplit summary --config=NAME|FILE {_OVERRIDES}", about="", flags=_RUN, examples=()
    ),
    "views": pages.Page(
        usage=f"jaxsplit views --config=NAME|FILE --workdir=DIR {_OVERRIDES}",
        about="""Draws the first training images, and the augmented view that each network sees of
them, as WORKDIR/views.png.""",
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

Without --config the config of the workdir holds. `jaxsplit VERB` is the same program.""",
        flags=_RUN
        | {"mode": "MODE", "init_from": "WEIGHTS", "checkpoint": "STEP", "to": "DIR"}
        | predict.VALUES
        | _PROCESSES,
        examples=(
            "python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits",
            "python main.py --mode=eval --workdir=runs/digits --checkpoint=best",
            "python main.py --mode=report --workdir=runs/digits,runs/other",
            "python main.py --mode=predict --workdir=runs/digits --images=photos",
            "python main.py --mode=summary --config=configs/imagenet_seresnet101_x4.py",
            "python main.py --mode=show_views --config=digits_wrn16_4_x4 --workdir=runs/digits",
            "python main.py --mode=export_leader --workdir=runs/ffsd",
        ),
        more=run_flags.overrides_and_experiments,
    ),
}


def run(argv: list[str], verb: str = "") -> int:
    """The program; `argv` without the verb, '' is main.py."""
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
    """Does what a parsed command line asks for."""
    with run_flags.errors_in_one_line():
        if verb:
            _check_flags(verb)
        mode = _MODE_OF.get(verb, verb) or _MODE.value
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r}: must be one of {', '.join([*MODES, 'report'])}")
        if mode != "summary" and not run_flags.WORKDIR.value:
            raise ConfigError(f"workdir: must be given with {verb or f'--mode={mode}'}")
        if mode != "train" and _INIT_FROM.value is not None:
            raise ConfigError(f"init_from: only with --mode=train, not {mode}")
        if mode != "export_leader" and _TO.value is not None:
            raise ConfigError(f"to: only with --mode=export_leader, not {mode}")
        for flag in predict.FLAGS:
            if flag.present and mode != "predict":
                raise ConfigError(f"{flag.name}: only with --mode=predict, not {mode}")
        if mode in ("train", "eval"):
            processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        MODES[mode](run_flags.CONFIG.value)


def _check_flags(verb: str) -> None:
    """Raises ConfigError for a flag of another verb."""
    own = (_MODE, _CHECKPOINT, _TO, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _INIT_FROM)
    for flag in (*own, *predict.FLAGS):
        if flag.present and flag.name not in PAGES[verb].flags:
            known = ", ".join(PAGES[verb].flags)
            raise ConfigError(f"{flag.name}={flag.value!r}: `{verb}` has the flags {known}")
