"""The PyTorch side of `bench.peers`: the same networks, as a user of PyTorch writes them.

A process of its own, which needs PyTorch and nothing of jaxsplit: `bench.peers` starts it, perhaps
by another Python. It reads a line of JSON at a time and answers with one:
  {"build": {...}}   makes a training step -> {"ready": seconds, "parameters": number of them}
  {"steps": n}       trains n steps -> {"seconds": of one, "loss": of the last}
  {"pass": [name, channels, side, batch]}  runs a 3x3 convolution, or its gradient -> {"seconds"}
  {"profile": n}     trains n steps -> {"operators": {name: seconds of one step}}
"""

import functools
import json
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

EXPANSION = 4


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x):
        y = F.relu(self.fc1(x.mean((2, 3), keepdim=True)), inplace=True)
        return x * self.fc2(y).sigmoid()


def conv_bn(c: int, features: int, kernel: int, stride: int = 1, groups: int = 1, relu=True):
    layers = [
        nn.Conv2d(c, features, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(features),
    ]
    return layers + ([nn.ReLU(inplace=True)] if relu else [])


class Block(nn.Module):
    def __init__(self, spec: dict, c: int, width: int, stride: int):
        super().__init__()
        if spec["block"] == "basic":
            features = width
            layers = conv_bn(c, width, 3, stride) + conv_bn(width, width, 3, relu=False)
        else:
            features, groups = width * EXPANSION, spec["groups"]
            inner = int(width * spec["base_width"] / 64) * groups
            first = inner // spec["first_divisor"]
            layers = conv_bn(c, first, 1) + conv_bn(first, inner, 3, stride, groups)
            layers += conv_bn(inner, features, 1, relu=False)
        if spec["se_reduction"]:
            layers.append(SqueezeExcite(features, spec["se_reduction"]))
        self.branch = nn.Sequential(*layers)
        self.shortcut = None
        if stride != 1 or c != features:
            pool = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)]
            self.shortcut = nn.Sequential(
                *(pool if stride == 2 else []), *conv_bn(c, features, 1, relu=False)
            )

    def forward(self, x):
        y = self.branch(x)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


def residual(spec: dict, channels: int, classes: int) -> nn.Module:
    """The network of a Spec of `jaxsplit.models.resnet`, given as a dict."""
    strided, layers, c = spec["stem_pool"] != "none", [], channels
    for i, features in enumerate(spec["stem"]):
        layers += conv_bn(c, features, spec["stem_kernel"], 2 if strided and i == 0 else 1)
        c = features
    if strided:
        ceil = spec["stem_pool"] == "ceil"
        layers.append(nn.MaxPool2d(3, 2, 0 if ceil else 1, ceil_mode=ceil))
    expansion = 1 if spec["block"] == "basic" else EXPANSION
    for stage, blocks in enumerate(spec["blocks"]):
        width = spec["width"] << stage
        for i in range(blocks):
            layers.append(Block(spec, c, width, 2 if stage and i == 0 else 1))
            c = width * expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(spec["dropout"])]
    return nn.Sequential(*layers, nn.Linear(c, classes))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention, self.mlp = Attention(width, heads), mlp(width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The network of a Spec of `jaxsplit.models.vit` with a class token, given as a dict."""

    def __init__(self, spec: dict, channels: int, size: int, classes: int):
        super().__init__()
        width, patch = spec["width"], spec["patch"]
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        blocks = [TransformerBlock(width, spec["heads"]) for _ in range(spec["blocks"])]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ChannelsLast(nn.Module):
    """Works on the last axis of maps: LayerNorm over the channels, then perhaps more."""

    def __init__(self, channels: int, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(channels, 1e-6), *layers)

    def forward(self, x):
        return self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(c, c, 7, 1, 3, groups=c), ChannelsLast(c, mlp(c)))
        self.scale = nn.Parameter(torch.full((c, 1, 1), 1e-6))

    def forward(self, x):
        return x + self.scale * self.branch(x)


def convnext(spec: dict, channels: int, classes: int) -> nn.Module:
    """The network of a Spec of `jaxsplit.models.convnext`, given as a dict."""
    c, patch = spec["channels"][0], spec["patch"]
    layers = [nn.Conv2d(channels, c, patch, patch), ChannelsLast(c)]
    for stage, (features, blocks) in enumerate(zip(spec["channels"], spec["blocks"], strict=True)):
        if stage:
            layers += [ChannelsLast(c), nn.Conv2d(c, features, 2, 2)]
        layers += [ConvNeXtBlock(features) for _ in range(blocks)]
        c = features
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(c, 1e-6)]
    return nn.Sequential(*layers, *pooled, nn.Linear(c, classes))


def network(task: dict) -> nn.Module:
    """The network of a task, by the fields of its Spec."""
    spec, channels, classes = task["spec"], task["channels"], task["classes"]
    if "heads" in spec:
        return Transformer(spec, channels, task["size"], classes)
    if spec["arch"].startswith("convnext"):
        return convnext(spec, channels, classes)
    return residual(spec, channels, classes)


def library_model(name: str, classes: int) -> nn.Module:
    """`timm:NAME` or `torchvision:NAME`, untrained."""
    library, _, name = name.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=classes)
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def js_divergence(logits):
    """Of the networks' predictions, logits [S, B, K], in log space."""
    log_p = logits.log_softmax(-1)
    mean = log_p.logsumexp(0) - math.log(len(logits))
    return (log_p.exp() * (log_p - mean)).sum(-1).mean()


def make(task: dict):
    """A function that trains one step and returns the loss, and the number of parameters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    s, batch, size = task["split"], task["batch"], task["size"]
    if name := task.get("model"):
        nets = [library_model(name, task["classes"]) for _ in range(s)]
    else:
        nets = [network(task) for _ in range(s)]
    last = torch.channels_last
    nets = [net.to(device, memory_format=last).train() for net in nets]
    count = sum(p.numel() for net in nets for p in net.parameters())
    shape = (batch, task["channels"], size, size)
    images = [torch.randn(shape, device=device).to(memory_format=last) for _ in range(s)]
    labels = torch.randint(0, task["classes"], (batch,), device=device)
    half = task["dtype"] == "bfloat16"

    if task["form"] == "vmap":
        params, buffers = torch.func.stack_module_state(nets)
        net, views = nets[0], torch.stack(images)

        def one(params, buffers, x):
            return torch.func.functional_call(net, (params, buffers), (x,))

        def forward():
            apply = torch.func.vmap(one, randomness="different")
            return apply(params, buffers, views)

        params = {k: p.detach().requires_grad_() for k, p in params.items()}
        trained = list(params.values())
    else:
        if task["compile"]:
            nets = [torch.compile(net) for net in nets]

        def forward():
            return torch.stack([net(x) for net, x in zip(nets, images, strict=True)])

        trained = [p for net in nets for p in net.parameters()]
    if task["form"] == "vmap" and task["compile"]:
        forward = torch.compile(forward)
    optimizer = torch.optim.SGD(
        trained, 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = forward()
        logits = logits.float()
        loss = sum(F.cross_entropy(z, labels) for z in logits)
        if s > 1:
            loss = loss + 0.5 * js_divergence(logits)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, count


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@functools.lru_cache
def operands(channels: int, side: int, batch: int):
    last = torch.channels_last
    x, g = (torch.randn(batch, channels, side, side).to(memory_format=last) for _ in "xg")
    return x, torch.randn(channels, channels, 3, 3).to(memory_format=last), g


def one_pass(name: str, channels: int, side: int, batch: int) -> float:
    x, kernel, g = operands(channels, side, batch)
    pair = [1, 1]
    began = time.perf_counter()
    with torch.no_grad():
        if name == "forward":
            F.conv2d(x, kernel, padding=1)
        else:
            mask = [name == "input", name == "kernel", False]
            torch.ops.aten.convolution_backward(
                g, x, kernel, None, pair, pair, pair, False, [0, 0], 1, mask
            )
    return time.perf_counter() - began


def profile(step, times: int, most: int = 12) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(times):
            step()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {row.key: row.self_cpu_time_total / 1e6 / times for row in rows[:most]}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what torch prints is no answer
    step = None
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            began = time.perf_counter()
            if "build" in asked:
                step = None  # frees the memory of the one before
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                step, count = make(asked["build"])
                for _ in range(3):  # compiles, chooses algorithms
                    step()
                wait()
                answer = {"ready": time.perf_counter() - began, "parameters": count}
            elif "pass" in asked:
                answer = {"seconds": one_pass(*asked["pass"])}
            elif "profile" in asked:
                answer = {"operators": profile(step, asked["profile"])}
            else:
                for _ in range(asked["steps"]):
                    loss = step()
                wait()
                seconds = (time.perf_counter() - began) / asked["steps"]
                answer = {"seconds": seconds, "loss": float(loss)}
        except Exception as error:  # a case that PyTorch cannot do must not end the others
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
