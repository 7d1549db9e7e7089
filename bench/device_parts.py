"""The parts of `bench.device`: each measures one thing and writes its figures one by one."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from bench import Results, peers, programs, train_step, where
from bench.programs import Case, changed
from configs import digits_wrn16_4_x4
from jaxsplit import compiler, conv, experiment, metrics, models, state
from jaxsplit.weights import torch_network

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "golden"
LOWERINGS = ("dense", "packed", "unrolled", "grouped")
HALF = dict(dtype="bfloat16")
# XLA options that may help on a GPU; each is compared with jax's defaults.
WITH_CONVOLUTIONS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONVOLUTION,DYNAMIC_SLICE_FUSION"
FLAGS = {
    "graphs with convolutions": {"xla_gpu_enable_command_buffer": WITH_CONVOLUTIONS},
    "concurrent graphs with convolutions": {
        "xla_gpu_enable_command_buffer": WITH_CONVOLUTIONS,
        "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
        "xla_gpu_graph_enable_concurrent_region": True,
    },
    "conv fusion": {"xla_gpu_experimental_enable_conv_fusion": True},
    "autotune 0": {"xla_gpu_autotune_level": 0},
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
    "no triton gemm": {"xla_gpu_enable_triton_gemm": False},
    "conv_nhwc": {"xla_gpu_force_conv_nhwc": True},
}


@dataclasses.dataclass
class Run:
    """What the parts share: the results, the time of a part, and whether the networks are small."""

    results: Results
    tiny: bool
    torch_python: str
    deadline: float = math.inf
    out: pathlib.Path | None = None  # folder of the results
    made: dict = dataclasses.field(default_factory=dict)  # case and options -> program

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

    def programs(self, asked: dict[str, tuple[Case, dict]], part: str) -> dict:
        """Compiles programs side by side, as most of it is work of one core; name -> program.

        A program that does not compile leaves a line in the results. One that exists is reused.
        """

        def make(case: Case, options: dict) -> programs.Program:
            key = (case, str(options))
            if key not in self.made:
                self.made[key] = programs.compile_case(case, self.options | options)
            return self.made[key]

        with futures.ThreadPoolExecutor(len(asked) or 1) as pool:
            waits = {}
            for name, one in asked.items():
                waits[name] = pool.submit(make, *one)
                if len(waits) == 1:  # the others find the convolutions that it has tuned
                    futures.wait(waits.values())
        found = {}
        for name, wait in waits.items():
            if error := wait.exception():
                self.failed(part, name, asked[name][0], error)
            else:
                found[name] = wait.result()
                found[name].seconds(self.steps)
        return found

    def failed(self, part: str, name: str, case: Case, error: BaseException) -> None:
        """Adds a line about a case that failed to the results."""
        line = " ".join(str(error).split())[:300]
        text = f"{type(error).__name__}: {line}"
        self.results.add(part, case=str(case), name=name, error=text)

    def in_turn(self, found: dict) -> dict[str, list[float]]:
        """Seconds of a step of each program, a list of `rounds`; they take turns."""
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(self.rounds):
            for name, program in found.items():
                times[name].append(program.seconds(self.steps))
        return times

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
        variables = torch_network.from_state_dict(spec, state, wanted.shape[1])
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
        if run.left < 0:
            return
        case = run.sized(case)
        asked = {}
        if case.split > 1:
            alone = changed(case, split=1, divide_in=case.split, method="single")
            asked["alone"] = (alone, {})
        for name in LOWERINGS[: 2 if run.tiny else None] if case.split > 1 else ("dense",):
            if name == "grouped" and case.arch != "wide_resnet16_4":
                continue  # minutes of autotuning, and slow
            if name == "unrolled" and case.size > 32:
                continue  # a long compilation
            asked[name] = (changed(case, lowering=name), {})
        found = run.programs(asked, "lowering")
        times = run.in_turn(found)
        alone_s = case.split * statistics.median(times.get("alone", [math.nan]))
        for name, program in found.items():
            one = asked[name][0]
            row = train_step.figures(one, program, times[name])
            whole = row["seconds"] * (case.split if name == "alone" else 1)
            ratio = whole / alone_s
            extra = {"lowering": name, "ratio_to_alone": ratio, "case": str(one)}
            run.results.add("lowering", **(row | extra | {"arch": case.arch}))


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
        run.failed(part, name, case, error)
        return None


def against_torch(run: Run) -> None:
    """The same networks in PyTorch on the same device, in turn: eager, compiled, stacked."""
    at_224 = dict(size=224, channels=3, classes=1000, **HALF)
    networks = [
        (Case("wide_resnet28_10", 1, 128, **HALF), ""),
        (Case("vit_s16", 1, 128, **at_224), "timm:vit_small_patch16_224"),
        (Case("convnext_tiny", 1, 128, **at_224), "timm:convnext_tiny"),
        (Case("vit_s16", 4, 128, **at_224), ""),
        (Case("convnext_tiny", 4, 128, **at_224), ""),
        (Case("wide_resnet28_10", 4, 128, **HALF), ""),
        (Case("wide_resnet16_4", 4, 128, **HALF), ""),
        (Case("resnet110", 4, 128, **HALF), ""),
        (Case("se_resnet101", 1, 128, **at_224), "timm:seresnet101"),
        (Case("se_resnet101", 4, 128, **at_224), ""),
        (Case("resnext101_64x4d", 1, 64, **at_224), "torchvision:resnext101_64x4d"),
    ]
    with peers.Torch(run.torch_python) as torch:
        if torch.about is None:
            run.results.add("peers", note="no PyTorch here: not compared")
            return
        for case, library in networks[: 1 if run.tiny else None]:
            case = run.sized(case)
            if run.left < 0:
                return
            lowering = "dense" if case.split > 1 or not run.tiny else "auto"
            case = changed(case, lowering=lowering)  # compiled by the part before
            program = run.programs({"ours": (case, {})}, "peers").get("ours")
            if program is None:
                continue
            forms = [("loop", True, ""), ("loop", False, "")]
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
    """Time of a step with each of XLA's options, as a ratio to the time without.

    Each runs in a process of its own, because some options end it.
    """
    if jax.default_backend() != "gpu" and not run.tiny:
        run.results.add("flags", note="options of GPUs: not tried here")
        return
    case = run.sized(Case("wide_resnet16_4", 4, 128, lowering="dense", **HALF))
    on_cpu = {"fast compilation": {"xla_backend_optimization_level": 0}}
    tried = on_cpu if jax.default_backend() == "cpu" else FLAGS
    base = math.nan
    for name, options in ({"none": {}} | tried).items():
        if run.left < 0:
            return
        row = _in_own_process(run, case, options)
        if name == "none":
            base = row.get("seconds", math.nan)
        ratio = row.get("seconds", math.nan) / base
        run.results.add("flags", **({"case": str(case), "name": name, "ratio": ratio} | row))


def _in_own_process(run: Run, case: Case, options: dict) -> dict:
    """Seconds of a step and of its compilation, or {'error': text}, from another process."""
    code = (
        "import json, sys\n"
        "from bench import programs\n"
        "case, options, rounds, steps = json.loads(sys.argv[1])\n"
        "program = programs.compile_case(programs.Case(**case), options)\n"
        "program.seconds(steps)\n"
        "times = sorted(program.seconds(steps) for _ in range(rounds))\n"
        "row = dict(seconds=times[len(times) // 2], compile_s=program.compile_s)\n"
        "print(json.dumps(row | dict(loss=program.loss())))\n"
    )
    asked = [dataclasses.asdict(case), run.options | options, run.rounds, run.steps]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": "more than 150 s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        return {"error": f"status {done.returncode}: {last}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def graphs(run: Run) -> None:
    """Lowerings with CUDA graphs, which jax uses by default, and without."""
    for arch, lowerings in (
        ("wide_resnet16_4", ("dense", "packed", "unrolled")),
        ("wide_resnet28_10", ("dense", "unrolled")),
    ):
        if run.left < 0:
            return
        case = run.sized(Case(arch, 4, 128, **HALF))
        asked = {}
        for lowering in lowerings[: 1 if run.tiny else None]:
            one = changed(case, lowering=lowering)
            asked[lowering] = (one, {})
            if jax.default_backend() == "gpu":
                asked[f"{lowering}, no graphs"] = (one, {"xla_gpu_enable_command_buffer": ""})
        found = run.programs(asked, "graphs")
        times = run.in_turn(found)
        for name, program in found.items():
            row = train_step.figures(asked[name][0], program, times[name])
            pairs = zip(times[name], times[next(iter(found))], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            about = {"case": str(asked[name][0]), "name": name, "ratio_to_first": ratio}
            run.results.add("graphs", **(row | about))


def where_time_goes(run: Run) -> None:
    """Device seconds of a step by kind of work, and the share of the time without a kernel."""
    cases = [
        Case("wide_resnet28_10", 4, 128, lowering="dense", **HALF),
        Case("resnet110", 4, 128, lowering="dense", **HALF),
        Case("wide_resnet28_10", 1, 128, lowering="dense", **HALF),
    ]
    for case in cases[: 1 if run.tiny else None]:
        if run.left < 0:
            return
        case = run.sized(case)
        program = run.programs({"one": (case, {})}, "where").get("one")
        if program is None:
            continue
        name = f"{case.arch}_s{case.split}"
        found = where.kernels(program, steps=2, keep=run.out and run.out / name)
        for kind, seconds in sorted(found.seconds.items(), key=lambda item: -item[1]):
            share = seconds / found.wall
            run.results.add("where", case=str(case), kind=kind, seconds=seconds, share=share)
        run.results.add(
            "where",
            case=str(case),
            kind="all kernels",
            seconds=found.busy,
            share=found.busy / found.wall,
            kernels=found.count,
        )
        for kernel, seconds in found.names.most_common(12):
            run.results.add("kernels", case=str(case), kernel=kernel[:160], seconds=seconds)


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
