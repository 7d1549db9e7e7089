"""The command line of jaxsplit: flags, and dispatch on --mode. All else can be imported.

python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits
python main.py --mode=eval --workdir=runs/digits --checkpoint=best
python main.py --mode=summary --config=configs/imagenet_seresnet101_x4.py
python main.py --mode=show_views --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits
python main.py --mode=export_leader --workdir=runs/ffsd
python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/tuned --init_from=runs/other
"""

from jaxsplit.hosts import allocator, signals

if __name__ == "__main__":
    signals.early()  # before the imports that take seconds
    allocator.keep_memory()  # before jax starts threads

from absl import app, flags  # noqa: E402

from jaxsplit import cli, loop  # noqa: E402
from jaxsplit.errors import ConfigError  # noqa: E402
from jaxsplit.hosts import processes  # noqa: E402
from jaxsplit.report import (
    summary,  # noqa: E402
    views,  # noqa: E402
)
from jaxsplit.weights import extract  # noqa: E402

_MODE = flags.DEFINE_string("mode", "train", "train, eval, summary, show_views or export_leader")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "For eval and export_leader: latest, best or a step"
)
_TO = flags.DEFINE_string(
    "to", None, "For export_leader: the leader's workdir; default WORKDIR/leader"
)
# Of several processes on machines that know nothing of each other; see `distributed.initialize`.
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port that process 0 listens on")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run; 1: this alone")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0")
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "For train: weights to start from (config.init_from): a workdir (its newest checkpoint), its "
    "checkpoints/<step>, or files of PyTorch weights with commas between them (:ema behind them: "
    "the averages in them)",
)


def _train(config) -> None:
    if _INIT_FROM.value is not None:
        config.init_from = _INIT_FROM.value
    with signals.Stop() as stop:
        loop.train_and_evaluate(config, cli.WORKDIR.value, stop)


MODES = {
    "train": _train,
    "eval": lambda config: loop.evaluate_checkpoint(config, cli.WORKDIR.value, _CHECKPOINT.value),
    "summary": lambda config: print(summary.of_config(config)),
    "export_leader": lambda config: print(
        extract.leader(config, cli.WORKDIR.value, _TO.value, _CHECKPOINT.value)
    ),
    "show_views": lambda config: print(views.views(config, cli.WORKDIR.value)),
}


def main(_: list[str]) -> None:
    with cli.errors_in_one_line():
        if _MODE.value not in MODES:
            raise ConfigError(f"mode={_MODE.value!r}: must be one of {', '.join(MODES)}")
        if _MODE.value != "summary" and not cli.WORKDIR.value:
            raise ConfigError(f"workdir: must be given with --mode={_MODE.value}")
        if _MODE.value != "train" and _INIT_FROM.value is not None:
            raise ConfigError(f"init_from: only with --mode=train, not {_MODE.value}")
        if _MODE.value != "export_leader" and _TO.value is not None:
            raise ConfigError(f"to: only with --mode=export_leader, not {_MODE.value}")
        if _MODE.value in ("train", "eval"):
            processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        MODES[_MODE.value](cli.CONFIG.value)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
