"""Makes tests/golden/vit_*.npz and convnext*.npz: small networks of timm with random weights.

python -m tests.support.timm_golden  # needs torch, torchvision and timm; 1.0.31 made the files

A file has the images, timm's logits, and the `state_dict` as state/<name>.
"""

import pathlib

import numpy as np
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "golden"
VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=10)
CONVNEXT = dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 24), num_classes=10)


def write(name: str, model: torch.nn.Module, size: int, seed: int) -> None:
    """Writes one file, with two images of `size` pixels."""
    generator = torch.Generator().manual_seed(seed)
    for path, value in model.named_parameters():
        value.data = torch.randn(value.shape, generator=generator)
        if path.endswith("gamma") or value.ndim == 1 and path.endswith("weight"):
            value.data = 1 + 0.2 * value.data
        elif path.endswith("bias"):
            value.data = 0.1 * value.data
        else:
            value.data = value.data / max(1, value[0].numel()) ** 0.5
    images = np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype("float32")
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    state = {f"state/{path}": value.numpy() for path, value in model.state_dict().items()}
    np.savez_compressed(FOLDER / f"{name}.npz", images=images, logits=logits, **state)


if __name__ == "__main__":
    write("vit_token", VisionTransformer(**VIT), 16, 0)
    mean = dict(class_token=False, global_pool="avg")
    write("vit_mean", VisionTransformer(**VIT, **mean), 16, 1)
    write("convnext", ConvNeXt(**CONVNEXT), 36, 2)
    write("convnext_conv_mlp", ConvNeXt(**CONVNEXT, conv_mlp=True), 32, 3)
