"""Mixup and CutMix: boxes computed by hand, one draw for all networks, shares of pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import augment, sharding, step
from jaxsplit.augment import mixing, ops
from jaxsplit.errors import ConfigError
from tests.support.xla import USUAL

S, B, H, W, C = 3, 6, 8, 10, 2
VIEWS = np.random.default_rng(0).normal(size=(S, B, H, W, C)).astype(np.float32)
LABELS = np.arange(B, dtype=np.int32) * 7


@pytest.mark.parametrize(
    ("lam", "centre", "rows", "columns"),
    [
        (0.75, (4, 5), (2, 6), (3, 8)),  # half of each side: 4 and 5, around row 4 and column 5
        (0.75, (0, 9), (0, 2), (7, 10)),  # cut off at the border
        (0.0, (4, 5), (0, 8), (0, 10)),  # all of it
        (1.0, (4, 5), (0, 0), (0, 0)),  # nothing
    ],
)
def test_box_by_hand(lam, centre, rows, columns):
    want = np.zeros((H, W), bool)
    want[rows[0] : rows[1], columns[0] : columns[1]] = True
    np.testing.assert_array_equal(mixing.box_mask(H, W, lam, *centre), want)


@functools.cache
def compiled(**fields):
    return jax.jit(lambda k, v, y: mixing.mixup_or_cutmix(k[0], k[1], v, y, **fields))


def draw(seed: int, **fields):
    fields = dict(mixup_alpha=0.0, cutmix_alpha=1.0, switch=0.5) | fields
    return compiled(**fields)(jax.random.split(jax.random.key(seed)), VIEWS, LABELS)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_one_box_of_one_partner_into_all_networks(seed):
    views, partner, lam = map(np.asarray, draw(seed))
    order = partner // 7
    assert sorted(order) == list(range(B))
    own, other = (views == VIEWS).all((0, 1, 4)), (views == VIEWS[:, order]).all((0, 1, 4))
    box = ~own
    assert (own | other).all()
    # A rectangle, the same in every image of every network; lambda is what it leaves, exactly.
    assert box.sum() == box.any(1).sum() * box.any(0).sum()
    assert lam == pytest.approx(1 - box.mean(), abs=1e-7)


def test_boxes_differ_between_steps_and_have_their_mean_area():
    shares = np.asarray([draw(seed)[2] for seed in range(300)])
    assert len(set(shares.tolist())) > 30
    # Of lambda uniform in [0, 1] a box of side sqrt(1 - lambda), centred anywhere, keeps this much.
    rng = np.random.default_rng(0)
    length = np.sqrt(1 - rng.uniform(size=200_000))[:, None] / 2
    at = rng.uniform(size=(200_000, 2))
    cut = np.minimum(at + length, 1) - np.maximum(at - length, 0)
    wanted = 1 - cut.prod(1)
    assert abs(shares.mean() - wanted.mean()) < 5 * wanted.std() / 300**0.5 + 0.02  # pixels


def test_one_of_the_two_in_every_step():
    """Mixup blends every pixel of an image, CutMix none; both occur with their probability."""
    cut = []
    for seed in range(200):
        views, partner, lam = map(np.asarray, draw(seed, mixup_alpha=0.5, switch=0.25))
        order = partner // 7
        blend = lam * VIEWS + (1 - lam) * VIEWS[:, order]
        mixed = np.allclose(views, blend, atol=1e-5)
        pasted = ((views == VIEWS) | (views == VIEWS[:, order])).all()
        assert mixed or pasted
        cut.append(bool(pasted))
    assert abs(np.mean(cut) - 0.25) < 5 * (0.25 * 0.75 / 200) ** 0.5


def test_mixup_alone_is_mixup():
    keys = jax.random.split(jax.random.key(3))
    got = draw(3, mixup_alpha=0.2, cutmix_alpha=0.0)
    want = augment.mixup(*keys, jnp.asarray(VIEWS), jnp.asarray(LABELS), 0.2)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fields", [dict(cutmix_alpha=-1.0), dict(mixup_alpha=-1.0)])
def test_bad_alpha(fields):
    (name,) = (field.removesuffix("_alpha") for field in fields)
    fields = dict(mixup_alpha=1.0, cutmix_alpha=1.0) | fields
    with pytest.raises(ConfigError, match=f"^augment.{name}=-1.0: must be above 0"):
        mixing.mixup_or_cutmix(*jax.random.split(jax.random.key(0)), VIEWS, LABELS, **fields)


def test_devices_share_the_box():
    """On a mesh all devices paste the same box, each from its own images."""
    mesh = sharding.make(4, 2, num_networks=4, batch_size=8)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (8, H, W, 3), dtype=np.uint8)
    resident = {"images": images, "labels": np.arange(8, dtype=np.int32)}
    run = step.make_inputs(
        mesh,
        [("normalize", ops.normalize((0.5,) * 3, (0.25,) * 3))],
        num_networks=4,
        shared_view=False,
        batch_of="indices",
        mixup=0.0,
        cutmix=1.0,
    )
    batch = {"index": np.arange(8, dtype=np.int32)}
    out = jax.jit(run, compiler_options=USUAL)(resident, batch, jax.random.key(5))
    partner, views = np.asarray(out["partner"]), np.asarray(out["views"])
    assert (partner // 2 == np.arange(8) // 2).all()  # two images a device
    view = functools.partial(augment.eval_view, mean=(0.5,) * 3, std=(0.25,) * 3)
    plain = np.asarray(jax.jit(view, compiler_options=USUAL)(images))
    own = (views == plain[None]).all((0, 4)) | (partner == np.arange(8))[:, None, None]
    box = ~own[partner != np.arange(8)]
    assert (box == box[:1]).all() and len(box) >= 2
    assert float(out["lam"]) == pytest.approx(1 - box[0].mean(), abs=1e-6)
    assert (views == views[:1]).all()  # all networks saw the same image here
    assert jnp.asarray(out["lam"]).shape == ()
