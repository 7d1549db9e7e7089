"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with a class token or a mean.

Sizes Ti, S and B (Ti and S from DeiT, Touvron et al. 2021, arXiv 2012.12877), any patch size:
  vit_s16       S with patches of 16 pixels for images of 224, answers from a class token
  vit_s16_gap   the same without a class token: the mean of all tokens, then LayerNorm
  vit_ti4       patches of 4 pixels and fewer are for images of 32, unless the name says more:
  vit_ti4_28    for images of 28 pixels, which the patches must divide

The positions are learned, one for each patch, so that a network takes images of any one size that
its patches divide. Without `drop_path` and `dropout` the network is timm's, and so are the names of
its weights.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal, Unpack

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import Dtype, block_class, classify, find_block, parameter, widen
from jaxsplit.models.stochastic import Dropout, DropPath
from jaxsplit.models.tokens import Attention, LayerNorm, Mlp, Patches

# Size -> (width, heads). Every size has 12 blocks.
SIZES = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}
_NAME = re.compile(r"vit_(ti|s|b)([1-9]\d*)(?:_([1-9]\d*))?(_gap)?")  # size, patch, pixels
STAGES = 4  # of three blocks each, for `trunk`, `remat` and FFSD's feature maps
TOLERANCE = 0.03  # of the cost of S networks

# (size, S) -> (width, heads) of one of S networks, as `divide` computes them for 14 x 14 patches
# and a class token. Heads are heads / sqrt(S), rounded. Width / sqrt(S) would cost too much, since
# the products of tokens with tokens grow with the width alone; so the width is the multiple of
# 2 * heads whose S networks cost nearest to the undivided network, or of `heads` where that is not
# within `TOLERANCE`.
DIVIDED = {
    ("ti", 2): (132, 2),
    ("ti", 4): (88, 2),
    ("s", 2): (264, 4),
    ("s", 4): (186, 3),
    ("b", 2): (544, 8),
    ("b", 4): (372, 6),
}


@dataclass(frozen=True)
class Spec:
    """One Vision Transformer: everything that its module needs. The module never sees S."""

    arch: str
    image_size: int  # side of the images that the division is computed for, in pixels
    patch: int  # side of a patch in pixels
    width: int  # channels of a token
    heads: int
    blocks: int = 12
    pool: Literal["token", "mean"] = "token"  # what the classifier reads
    dropout: float = 0.0  # rate of the tokens' elements, at the start and in every branch
    drop_path: float = 0.0  # rate of the last block's branches; grows linearly with the block
    splits: tuple[int, ...] = (1, 2, 4)  # the values of S that `divide` accepts

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return STAGES

    @property
    def blocks_per_stage(self) -> int:
        """Number of blocks in each stage; the last may have fewer."""
        return -(-self.blocks // STAGES)


def macs(spec: Spec) -> int:
    """Multiply-adds of an RGB image of `spec.image_size` pixels, without the classifier."""
    patches = (spec.image_size // spec.patch) ** 2
    n, w = patches + (spec.pool == "token"), spec.width
    return n * spec.blocks * (12 * w**2 + 2 * n * w) + patches * 3 * spec.patch**2 * w


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`; `DIVIDED` says how. Rates over sqrt(S)."""
    s = num_networks
    if s == 1:
        return spec
    heads = max(1, round(spec.heads / s**0.5))
    near, whole = spec, macs(spec)
    for step in (2 * heads, heads):
        narrower = (
            dataclasses.replace(spec, width=width, heads=heads)
            for width in range(step, spec.width + 1, step)
        )
        near = min(narrower, key=lambda each: abs(s * macs(each) - whole))
        if abs(s * macs(near) - whole) <= TOLERANCE * whole:
            break
    return dataclasses.replace(
        near, dropout=spec.dropout / s**0.5, drop_path=spec.drop_path / s**0.5
    )


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with its width times a factor, in multiples of its heads, which it keeps."""
    return dataclasses.replace(spec, width=scaled(spec.width, factor, spec.heads))


class Tokens(nn.Module):
    """Adds a class token, if asked for, and the learned positions: [B, h, w, C] -> [B, N, C]."""

    class_token: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        if self.class_token:
            token = parameter(self, "class_token", nn.initializers.zeros, (1, 1, c))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (b, 1, c)), x], 1)
        positions = parameter(self, "positions", nn.initializers.normal(0.02), (1, x.shape[1], c))
        return x + positions.astype(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): float[B, N, C] -> the same shape."""

    heads: int
    dropout: float
    drop_path: float
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        def branch(name: str, y: Array) -> Array:
            y = Dropout(self.dropout, name=f"dropout_{name}")(y, train, example_ids)
            return DropPath(self.drop_path, name=f"drop_path_{name}")(y, train, example_ids)

        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + branch("attn", Attention(self.heads, self.dtype, name="attn")(y))
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        return x + branch("mlp", Mlp(4 * x.shape[-1], self.dtype, name="mlp")(y))


class ViT(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the patches' tokens as maps float[B, H / patch, W / patch, width]: the output of
    every stage, `stage1` ... `stage4`, and `final`, the last tokens. Logits are at least float32.
    """

    spec: Spec
    num_classes: int
    axis_name: str | None = None  # of BatchNorm in other backbones; this one has none
    dtype: Dtype | None = None
    remat: tuple[str, ...] = ()  # stages whose blocks are recomputed; see layers.block_class

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, example_ids: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        spec, token = self.spec, self.spec.pool == "token"
        b, height, width, _ = x.shape
        if height % spec.patch or width % spec.patch:
            raise ConfigError(
                f"arch={spec.arch!r}: its patches of {spec.patch} pixels must divide the images, "
                f"which have {height} x {width}; data.image_size can be a multiple of {spec.patch}"
                f"{_other_patch(spec, height, width)}"
            )
        if spec.width % spec.heads:
            near = max(1, round(spec.width / spec.heads)) * spec.heads
            raise ConfigError(
                f"arch={spec.arch!r}: its width {spec.width} must be a multiple of its "
                f"{spec.heads} heads, such as {near}"
            )
        x = Patches(spec.width, spec.patch, self.dtype, name="stem_patches")(x)
        grid = x.shape
        x = Tokens(token, name="stem_tokens")(x)
        x = Dropout(spec.dropout, name="stem_dropout")(x, train, example_ids)

        def as_map(x: Array) -> Array:
            return x[:, int(token) :].reshape(grid)

        features = {}
        for i in range(spec.blocks):
            stage, place = divmod(i, spec.blocks_per_stage)
            rate = spec.drop_path * i / max(spec.blocks - 1, 1)
            make = block_class(Block, stage + 1, self.remat)
            name = f"stage{stage + 1}_block{place + 1}"
            block = make(spec.heads, spec.dropout, rate, self.dtype, name=name)
            x = block(x, train, example_ids)
            features[f"stage{stage + 1}"] = as_map(x)
        norm = LayerNorm(name="norm")
        if token:
            x = norm(x)
        features["final"] = as_map(x)
        x = x[:, 0] if token else norm(widen(x).mean(1))
        logits = classify(x.reshape(b, 1, 1, -1), self.num_classes, train=train)
        return logits, features


def _other_patch(spec: Spec, height: int, width: int) -> str:
    """A hint at a patch that divides the images, into about as many as `spec` has; or ''."""
    common = math.gcd(height, width)
    fit = [patch for patch in range(2, common) if common % patch == 0]
    match = _NAME.fullmatch(spec.arch)
    if not fit or match is None:
        return ""
    wanted = spec.patch * common / spec.image_size
    near = min(fit, key=lambda patch: abs(math.log(patch / wanted)))
    name = f"vit_{match[1]}{near}_{height}{match[4] or ''}"
    return f", or another patch divides them, such as {name}"


def parse(arch: str) -> Spec | None:
    """The Spec of a name such as 'vit_s16' or 'vit_ti4_28_gap'.

    None: the name has another form, or its patches do not divide its images.
    """
    match = _NAME.fullmatch(arch)
    if match is None:
        return None
    (width, heads), patch = SIZES[match[1]], int(match[2])
    pixels = int(match[3]) if match[3] else (32 if patch <= 4 else 224) // patch * patch
    pool = "mean" if match[4] else "token"
    if pixels < patch or pixels % patch:
        return None
    return Spec(arch, pixels, patch, width, heads, pool=pool)


TORCH_NAMES = {
    "stem_patches": "patch_embed.proj",
    "stem_tokens": "",  # its arrays have no module
    "head": "head",
}


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """timm's name of a module: (stage2_block1, attn, qkv) -> blocks.3.attn.qkv."""
    if (place := find_block(module[0])) is not None:
        stage, block = place
        first = (stage - 1) * spec.blocks_per_stage
        return ".".join((f"blocks.{first + block - 1}", *module[1:]))
    if module == ("norm",):
        return "norm" if spec.pool == "token" else "fc_norm"
    return TORCH_NAMES[module[0]]


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> ViT:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return ViT(spec, num_classes, **fields)


def _named(*names: str) -> dict[str, Spec]:
    return {name: spec for name in names if (spec := parse(name))}


FAMILY = Family(
    specs=_named("vit_ti16", "vit_s16", "vit_b16", "vit_ti4"),
    divide=divide,
    build=build,
    pattern="vit_{size}{patch}",
    parse=parse,
    torch_name=torch_name,
    pack=pack,
    products=True,
    whole=lambda spec: (),
)
