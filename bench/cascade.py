"""What a cascade saves: seconds of a batch of images against those of the whole ensemble.

python -m bench.cascade [--arch wide_resnet16_4] [--split 4] [--batch 128] [--size 32]
python -m bench.cascade --workdir runs/digits

Alternately and in one process, whole predictions of the same images. Without --workdir the networks
are random, and a threshold is chosen so that a given share of the images leaves after the first
network; then time is to be compared with multiply-adds. With it they are those of a run, on the
test set, with the accuracy at each threshold. A program is compiled before it is timed.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time

import numpy as np

import jaxsplit
from bench import Results, errors_in_one_line, programs
from jaxsplit import config as config_lib
from jaxsplit import data, experiment, state
from jaxsplit.checkpoints import store
from jaxsplit.data import facts
from jaxsplit.inference import Predictor, cascade, cascade_fit

_LEAVE = (0.0, 0.25, 0.5, 0.75, 0.9)  # shares that leave after the first network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser, arch="wide_resnet16_4", batch=128)
    parser.add_argument("--workdir", help="a run, evaluated on its test set; default: random ones")
    parser.add_argument("--images", type=int, default=1024, help="predicted at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    with errors_in_one_line(), contextlib.ExitStack() as at_end:
        if args.workdir:
            predictor = jaxsplit.load(args.workdir)
            images, labels = images_of_test(predictor, args.images)
        else:
            folder = pathlib.Path(at_end.enter_context(tempfile.TemporaryDirectory()))
            write_random(programs.of_arguments(args), folder)
            predictor = jaxsplit.load(folder, batch_size=args.batch)
            shape = (args.images, *predictor.image_shape)
            images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
            labels = None
        measure(predictor, images, labels, args)


def write_random(case: programs.Case, workdir: pathlib.Path) -> None:
    """A workdir with the networks of a case, not trained."""
    config = programs.config_of(case)
    dataset = programs.dataset_of(config, case.classes, case.channels, case.size)
    exp = experiment.build(config, dataset=dataset)
    made = state.init(exp.method, exp.optimizer, 0, dataset.image_shape, exp.sharding)
    config_lib.save(exp.config, workdir)
    facts.write(workdir, facts.of_dataset(dataset))
    checkpoints = store.Checkpoints(workdir)
    checkpoints.save_weights(made.variables, exp.config, {})
    checkpoints.close()


def images_of_test(predictor: Predictor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8[N, H, W, C] and labels int[N] of a run's test set, as evaluation sees them."""
    test = data.load(predictor.config.data).test
    shape = predictor.image_shape
    batches = data.eval_batches(test, batch_size=min(most, len(test)), image_shape=shape)
    batch = next(iter(batches))
    return batch["images"], batch["labels"]


def measure(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray | None, args: argparse.Namespace
) -> None:
    """Times every threshold beside the whole ensemble; shows and writes the table."""
    names = predictor.using(cascade=1).voters
    named = predictor.logits(images)
    logits = np.stack([named[name] for name in names])
    found = cascade.steps(logits, predictor.config.eval.ensemble)
    costs = cascade_fit.network_costs(predictor.restored, names)
    first = found.confidence[0]
    ways = {"whole ensemble": predictor}
    for share in _LEAVE:
        at = cascade.ALL if share == 0 else float(np.quantile(first, 1 - share))
        ways[f"{share:.0%}"] = predictor.using(cascade=at, networks=names)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(args.rounds + 1):  # the first compiles
        for name, way in ways.items():
            began = time.perf_counter()
            way.predict(images)
            if k:
                seconds[name].append(time.perf_counter() - began)
    results = Results(args.out)
    title = "leave after the first"
    lines = [f"| {title} | multiply-adds | seconds | ratio | accuracy |", "|---|---|---|---|---|"]
    base = seconds["whole ensemble"]
    for name, way in ways.items():
        used = way.predict(images).used
        share = 1.0 if used is None else float(np.cumsum(costs)[used - 1].mean() / costs.sum())
        ratio = statistics.median(a / b for a, b in zip(seconds[name], base, strict=True))
        median = statistics.median(seconds[name])
        right = None
        if labels is not None:
            right = float((way(images).argmax(-1) == labels).mean())
        results.add(
            "cascade",
            case=config_lib.resolve(predictor.config).spec.arch,
            leave=name,
            macs_share=share,
            seconds=median,
            ratio=ratio,
            accuracy=right,
            images=len(images),
        )
        told = "" if right is None else f"{right:.2%}"
        lines.append(f"| {name} | {share:.1%} | {median:.4f} | {ratio:.3f} | {told} |")
    config, (height, width, _) = predictor.config, predictor.image_shape
    what = f"{config.arch} divided in {len(names)}, {len(images)} images of {height}x{width}"
    batch = f"batches of {predictor.batch_size}"
    rounds = f"median of {args.rounds} rounds"
    results.show("\n".join(lines), what, batch, programs.device_name(), rounds)


if __name__ == "__main__":
    main()
