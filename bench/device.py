"""All measurements that need a GPU or a TPU, in one command of at most eight minutes.

python -m bench.device --out results [--seconds 460] [--parts parity lowering ...] [--tiny]

The parts run in order of importance, each within its own share of the time. Each figure is written
as soon as it is known, as a line of JSON in `results/device.jsonl`, so an interrupted run loses no
figure. At the end (or with `--table results/device.jsonl`) the figures become `device.md`. The
program needs jax, flax, optax, orbax and ml_collections. Parts that need PyTorch, timm or
torchvision print a line if these are missing. `--tiny` runs every part with small networks, on any
machine.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

if __name__ == "__main__":  # before jax starts: PyTorch's process needs memory of the same device
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from bench import Results, peers, programs, train_step
from bench.programs import Case, changed
from jaxsplit import compiler, conv, models
from jaxsplit.weights import torch_import

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "golden"
LOWERINGS = ("dense", "packed", "unrolled", "grouped")
HALF = dict(dtype="bfloat16")
# XLA options that may help on a GPU; each is compared with jax's defaults.
FLAGS = {
    "conv_nhwc": {"xla_gpu_force_conv_nhwc": True},
    "autotune 0": {"xla_gpu_autotune_level": 0},
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
    "conv fusion": {"xla_gpu_experimental_enable_conv_fusion": True},
    "no triton gemm": {"xla_gpu_enable_triton_gemm": False},
    "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
}


@dataclasses.dataclass
class Run:
    """What the parts share: the results, the time of a part, and whether the networks are small."""

    results: Results
    tiny: bool
    torch_python: str
    deadline: float = math.inf

    @property
    def left(self) -> float:
        """Seconds left for the part."""
        return self.deadline - time.monotonic()

    def sized(self, case: Case) -> Case:
        """The case; with --tiny a small case of the same kind."""
        if not self.tiny:
            return case
        split = min(case.split, 2)
        return changed(case, arch="wide_resnet10_1", split=split, batch=4, size=8, classes=10)

    @property
    def options(self) -> dict:
        """XLA's options; with --tiny on CPU those that shorten the compilation."""
        small = self.tiny and jax.default_backend() == "cpu"
        return dict(compiler.FAST) if small else {}

    @property
    def rounds(self) -> int:
        return 2 if self.tiny else 5

    @property
    def steps(self) -> int:
        """Number of steps of a round, queued one after another."""
        return 1 if self.tiny else 10


def parity(run: Run) -> None:
    """Compares logits of two networks with the original code's, and a step with float64 on CPU."""
    paths = sorted(GOLDEN.glob("models_*.npz"), reverse=True)  # the shallower one first
    for path in paths[: 1 if run.tiny else None]:
        file = dict(np.load(path))
        arch, s = path.stem.split("_", 2)[2].rpartition("_s")[::2]
        spec, wanted = models.divided(arch, int(s)), file["logits_eval"]
        state = {k.removeprefix("state/"): v for k, v in file.items() if k.startswith("state/")}
        variables = torch_import.from_state_dict(spec, state, wanted.shape[1])
        images = file["x"].astype(np.float32).transpose(0, 2, 3, 1)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, images))
            cpu = jax.devices("cpu")[0]
            _, exact_loss, exact = _logits_and_step(spec, wanted.shape[1], cpu, None, *wide)
        norm = math.sqrt(sum(float(np.square(g).sum()) for g in jax.tree.leaves(exact)))
        ways = ((None, "highest"), ("bfloat16", "default"), (None, "default"))
        for dtype, precision in ways[: 2 if run.tiny else None]:
            with jax.default_matmul_precision(precision):
                logits, loss, grads = _logits_and_step(
                    spec, wanted.shape[1], jax.devices()[0], dtype, variables, images
                )
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True)
            off = math.sqrt(sum(float(np.square(a - b).sum()) for a, b in pairs))
            run.results.add(
                "parity",
                network=path.stem,
                precision=dtype or f"float32 {precision}",
                logits_error=float(np.abs(logits - wanted).max() / np.abs(wanted).max()),
                loss_error=abs(float(loss) - float(exact_loss)) / abs(float(exact_loss)),
                gradient_error=off / norm,
            )
            if run.left < 0:
                return


def _logits_and_step(spec, num_classes: int, device, dtype: str | None, variables, images):
    """A network on a device: logits of an evaluation; loss and gradients of a training step."""
    module = models.build(spec, num_classes, dtype=None if dtype is None else jnp.dtype(dtype))
    labels = np.arange(len(images)) % num_classes

    def both(variables, images):
        def loss(params):
            (logits, _), _ = module.apply(
                dict(variables, params=params),
                images,
                True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

        value, grads = jax.value_and_grad(loss)(variables["params"])
        return module.apply(variables, images)[0], value, grads

    options = compiler.fast_options(device.platform)
    with compiler.tracing_for(device.platform), jax.default_device(device):
        return jax.device_get(jax.jit(both, compiler_options=options)(variables, images))


def lowering(run: Run) -> None:
    """Time of a step by lowering, and of S steps of one network."""
    cases = [
        Case("wide_resnet16_4", 4, 128, **HALF),
        Case("resnet110", 4, 128, **HALF),
        Case("wide_resnet28_10", 4, 128, **HALF),
        Case("se_resnet101", 4, 128, 224, 3, 1000, **HALF),
        Case("resnet110", 2, 128, **HALF),
        Case("wide_resnet28_10", 2, 128, **HALF),
        Case("wide_resnet28_10", 1, 128, **HALF),
        Case("resnet110", 1, 128, **HALF),
        Case("wide_resnet28_10", 4, 512, **HALF),
        Case("wide_resnet28_10", 1, 512, **HALF),
        Case("resnext101_64x4d", 2, 128, 224, 3, 1000, **HALF),
    ]
    for case in cases[: 1 if run.tiny else None]:
        case = run.sized(case)
        made = {}
        if case.split > 1:
            alone = changed(case, split=1, divide_in=case.split, method="single")
            made["alone"] = (alone, case.split)
        lowerings = LOWERINGS[: 2 if run.tiny else None] if case.split > 1 else ("unrolled",)
        for name in lowerings:
            made[name] = (changed(case, lowering=name), 1)
        rows = {}
        for name, (one, times) in made.items():
            if run.left < 0:
                return
            if name == "grouped" and case.size > 32:
                continue  # minutes of autotuning, and slow
            row = _guarded(run, "lowering", name, one)
            if row is None:
                continue
            rows[name] = row["seconds"] * times
            extra = {"lowering": name, "ratio_to_alone": rows[name] / rows.get("alone", math.nan)}
            run.results.add("lowering", **(row | extra | {"case": str(case), "arch": case.arch}))


def shapes(run: Run) -> None:
    """Ratio of packed to dense for 3x3 convolutions of S networks, forward and both gradients.

    The choice of `auto` can follow from it for each shape.
    """
    cases = [
        (4, 128, 32, 32),  # S, batch, side, channels: WRN-16-4 in 4
        (4, 128, 8, 128),
        (4, 128, 32, 80),  # WRN-28-10 in 4
        (4, 128, 8, 320),
        (4, 128, 32, 8),  # ResNet-110 in 4
        (4, 128, 8, 32),
        (2, 128, 32, 12),
        (4, 128, 56, 32),  # SE-ResNet-101 in 4
        (4, 128, 14, 128),
        (8, 128, 32, 16),
        (2, 128, 16, 224),
    ]
    device = jax.devices()[0]
    options = run.options or compiler.options(device.platform)
    for s, batch, side, channels in cases[: 1 if run.tiny else None]:
        if run.left < 0:
            return
        if run.tiny:
            s, batch, side, channels = 2, 2, 8, 4
        key = jax.random.key(0)
        maps = jax.random.normal(key, (s, batch, side, side, channels), jnp.bfloat16)
        kernel = jax.random.normal(key, (s, 3, 3, channels, channels), jnp.bfloat16)
        seconds = {}
        for name in ("dense", "packed"):

            def both(maps, kernel, g, name=name):
                with conv.lowered(name), compiler.tracing_for(device.platform):
                    out, pull = jax.vjp(jax.vmap(conv.conv), maps, kernel)
                    return out, pull(g)

            program = jax.jit(both).lower(maps, kernel, maps).compile(compiler_options=options)
            times = []
            for _ in range(run.rounds):
                began = time.perf_counter()
                for _ in range(run.steps):
                    out = program(maps, kernel, maps)
                jax.block_until_ready(out)
                times.append((time.perf_counter() - began) / run.steps)
            seconds[name] = statistics.median(times)
        run.results.add(
            "shapes",
            case=f"S {s}, batch {batch}, {side}x{side}, {channels} channels",
            dense_s=seconds["dense"],
            packed_s=seconds["packed"],
            ratio=seconds["packed"] / seconds["dense"],
        )


def _guarded(run: Run, part: str, name: str, case: Case, options: dict | None = None):
    """The figures of a case; None, after a line in the results, if it fails."""
    try:
        return train_step.measure(
            case, rounds=run.rounds, steps=run.steps, options=run.options | (options or {})
        )
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        run.results.add(part, case=str(case), name=name, error=f"{type(error).__name__}: {line}")
        return None


def against_torch(run: Run) -> None:
    """The same networks in PyTorch on the same device, in turn: eager, compiled, stacked."""
    networks = [
        (Case("wide_resnet16_4", 4, 128, **HALF), ""),
        (Case("wide_resnet28_10", 1, 128, **HALF), ""),
        (Case("wide_resnet28_10", 4, 128, **HALF), ""),
        (Case("resnet110", 4, 128, **HALF), ""),
        (Case("se_resnet101", 1, 128, 224, 3, 1000, **HALF), "timm:seresnet101"),
        (Case("se_resnet101", 4, 128, 224, 3, 1000, **HALF), ""),
        (Case("resnext101_64x4d", 1, 64, 224, 3, 1000, **HALF), "torchvision:resnext101_64x4d"),
    ]
    with peers.Torch(run.torch_python) as torch:
        if torch.about is None:
            run.results.add("peers", note="no PyTorch here: not compared")
            return
        for case, library in networks[: 1 if run.tiny else None]:
            case = run.sized(case)
            program = programs.compile_case(case, run.options)
            program.seconds(run.steps)
            forms = [("loop", False, ""), ("loop", True, "")]
            if case.split > 1:
                forms += [("vmap", False, "")]
            if library and not run.tiny:
                forms += [("loop", True, library)]
            for form, compiled, model in forms[: 3 if run.tiny else None]:
                if run.left < 0:
                    return
                if run.tiny and compiled:
                    continue  # a minute of compilation
                made = torch.build(case, form=form, compiled=compiled, model=model)
                name = " ".join([model or form, *(["compiled"] if compiled else [])])
                row = {"case": str(case), "form": name, "split": case.split}
                if "error" in made:
                    run.results.add("peers", **row, error=made["error"])
                    continue
                ours, theirs = [], []
                for _ in range(run.rounds):
                    theirs.append(torch.seconds(run.steps))
                    ours.append(program.seconds(run.steps))
                ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
                run.results.add(
                    "peers",
                    **row,
                    jaxsplit_s=statistics.median(ours),
                    torch_s=statistics.median(theirs),
                    times_as_fast=statistics.median(ratios),
                    torch_ready_s=made["ready"],
                    torch=torch.about["torch"],
                )


def flags(run: Run) -> None:
    """Time of a step with each of XLA's options, as a ratio to the time without."""
    if jax.default_backend() != "gpu" and not run.tiny:
        run.results.add("flags", note="options of GPUs: not tried here")
        return
    case = run.sized(Case("wide_resnet28_10", 4, 128, **HALF))
    base = _guarded(run, "flags", "none", case)
    on_cpu = {"fast compilation": {"xla_backend_optimization_level": 0}}
    for name, options in (on_cpu if jax.default_backend() == "cpu" else FLAGS).items():
        if run.left < 0 or base is None:
            return
        row = _guarded(run, "flags", name, case, options)
        if row is not None:
            ratio = row["seconds"] / base["seconds"]
            run.results.add("flags", case=str(case), name=name, ratio=ratio, **_compile_of(row))


def _compile_of(row: dict) -> dict:
    return {key: row[key] for key in ("seconds", "compile_s", "trace_s")}


def step_parts(run: Run) -> None:
    """Share of the views, MFU, memory of a stack, compile time by S, time to the first step."""
    case = run.sized(Case("wide_resnet28_10", 4, 128, **HALF))
    plain = _guarded(run, "step", "images as they are", case)
    if plain is not None:
        run.results.add("step", what="images as they are", **plain)
        views = _guarded(run, "step", "views", changed(case, views=True))
        if views is not None:
            share = 1 - plain["seconds"] / views["seconds"]
            run.results.add("step", what="views of the full recipe", share=share, **views)
    alone = changed(case, split=1, divide_in=case.split, method="single")
    one = _guarded(run, "step", "alone", alone)
    if one is not None and plain is not None:
        run.results.add(
            "step",
            what="memory",
            case=str(case),
            stack_mib=plain["temporary_mib"],
            alone_mib=one["temporary_mib"],
            ratio=plain["temporary_mib"] / (case.split * one["temporary_mib"]),
        )
    compiled = {}
    for s in (1, 8):
        if run.left < 0:
            return
        small = Case("wide_resnet16_8", s, 32, **HALF)
        small = changed(run.sized(small), split=s if not run.tiny else min(s, 2))
        row = _guarded(run, "step", "compile", small)
        if row is not None:
            compiled[s] = row["trace_s"] + row["compile_s"]
    if len(compiled) == 2:
        ratio = compiled[8] / compiled[1]
        run.results.add("step", what="compile time, S = 8 to 1", ratio=ratio, s8=compiled[8])
    if run.left < 30 and not run.tiny:
        return
    code = "import sys; sys.argv[1:] = ['--quick', '--rounds', '1']\n"
    code += "from bench import train_step; train_step.main()"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=120)
    seconds = time.perf_counter() - began
    run.results.add("step", what="a process with two small cases", seconds=seconds)


def accuracy(run: Run) -> None:
    """Seconds and epochs to an accuracy, of WRN-16-4 divided in 4 and undivided, on real images.

    The images are Fashion-MNIST from FASHION_NPZ (an .npz as in `data.dir`), else digits.
    """
    from configs import digits_wrn16_4_x4
    from jaxsplit import experiment, metrics, state

    source = os.environ.get("FASHION_NPZ", "")
    for split in (1,) if run.tiny else (4, 1):
        config = digits_wrn16_4_x4.get_config()
        config.split, config.method = split, "cotrain" if split > 1 else "single"
        config.mesh.data = 1
        goal, epochs = 0.93, 15
        if source:
            config.data.name, config.data.dir = "fashion_mnist", str(pathlib.Path(source).parent)
            config.batch_size, config.dtype = 256, "bfloat16"
        if run.tiny:
            config.arch, config.split = "wide_resnet10_1", min(split, 2)
            config.divide_anyway = True  # so narrow a network does not divide
            goal, epochs = 0.3, 1
        config.duration = f"{epochs} epochs"
        config.schedule.warmup = config.cotrain.warmup = "1 epochs"
        exp = experiment.build(config, devices=jax.devices()[:1])
        mesh, data = exp.sharding, exp.feed.resident
        resident = mesh.put({"images": data.images, "labels": data.labels}, mesh.replicated)
        batches = exp.feed.batches(0)
        current = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, mesh)
        batch = experiment.put_batch(exp, next(batches))
        step, empty = experiment.compile_step(exp, current, resident, batch)
        test, answer = exp.dataset.test, exp.method.answer
        began = time.perf_counter()
        for epoch in range(1, epochs + 1):
            totals = empty
            for _ in range(exp.feed.steps_per_epoch):
                current, totals = step(current, totals, resident, batch)
                batch = experiment.put_batch(exp, next(batches))
            hits = 0.0
            for first in range(0, len(test), 1000):
                images = test.images[first : first + 1000]
                whole = {
                    "images": np.resize(images, (1000, *images.shape[1:])),
                    "labels": np.resize(test.labels[first : first + 1000], 1000),
                    "mask": (np.arange(1000) < len(images)).astype(np.float32),
                }
                sums = exp.eval_step(current.variables, whole)
                hits += float(sums[answer]["top1"])
            right = hits / len(test)
            run.results.add(
                "accuracy",
                data=exp.dataset.name,
                split=config.split,
                epoch=epoch,
                right=right,
                loss=metrics.means(totals)["loss"],
                seconds=time.perf_counter() - began,
                reached=right >= goal,
            )
            if right >= goal or run.left < 0:
                break
        batches.close()
        if run.left < 0:
            return


# Part -> (share of the time, function), in order of importance.
PARTS: dict[str, tuple[float, Callable[[Run], None]]] = {
    "parity": (0.10, parity),
    "lowering": (0.28, lowering),
    "peers": (0.26, against_torch),
    "shapes": (0.06, shapes),
    "flags": (0.10, flags),
    "step": (0.12, step_parts),
    "accuracy": (0.08, accuracy),
}
TARGETS = """\
Targets on an H100: divided networks at least 1.5 times as fast as compiled PyTorch, undivided at
least 1.0 times; a stack at most 1.05 of S steps alone, 0.7 where networks cannot fill the device;
MFU of WRN-28-10 at least 36 %; views at most 5 % of a step; S = 8 compiles in at most 2.5 times
the time of S = 1."""


def run_parts(run: Run, names: Sequence[str], seconds: float) -> None:
    """Runs the parts in order; later parts may use time that earlier ones have left."""
    end = time.monotonic() + seconds
    for i, name in enumerate(names):
        shares = [PARTS[n][0] for n in names[i:]]
        now = time.monotonic()
        run.deadline = now + (end - now) * shares[0] / sum(shares)
        began = time.perf_counter()
        try:
            PARTS[name][1](run)
            failed = {}
        except Exception as error:  # the other parts should still run
            failed = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        run.results.add("part", name=name, took_s=time.perf_counter() - began, **failed)
        print(f"{name}: {time.perf_counter() - began:.0f} s {failed or ''}", flush=True)
        jax.clear_caches()  # unused programs hold device memory


def report(rows: Sequence[dict]) -> str:
    """All figures as tables, part by part."""
    text = []
    for part in PARTS:
        own = [row for row in rows if row["part"] == part]
        if not own:
            continue
        hidden = {"part", "jax", "python", "commit", "time", "split", "batch", "devices"}
        keys = [k for k in dict.fromkeys(k for row in own for k in row) if k not in hidden]
        text += [f"## {part}", "", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        text += ["| " + " | ".join(_cell(row.get(k)) for k in keys) + " |" for row in own]
        text.append("")
    return "\n".join([*text, TARGETS])


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder of device.jsonl and device.md")
    parser.add_argument("--seconds", type=float, default=460, help="of all parts together")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small networks, on any machine")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--table", type=pathlib.Path, help="only print those of a device.jsonl")
    args = parser.parse_args()
    if args.table:
        rows = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(report(rows))
        return
    results = Results(args.out / "device.md" if args.out else None)
    name = programs.device_name()
    results.add("device", device=name, count=len(jax.devices()), seconds=args.seconds)
    # Figures are on disk one by one: a compilation that takes too long must not hold the machine.
    watchdog = threading.Timer(args.seconds + 60, lambda: os._exit(3))
    watchdog.daemon = True
    watchdog.start()
    run = Run(results, args.tiny, args.torch_python)
    run_parts(run, args.parts, args.seconds)
    watchdog.cancel()
    results.show(report(results.rows), name)


if __name__ == "__main__":
    main()
