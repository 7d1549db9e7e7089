"""Compares ops on the device with NumPy; views do not depend on how the work is split; mixup."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsplit import augment
from jaxsplit.augment import ops, views
from jaxsplit.errors import ConfigError
from tests.support.paths import GOLDEN

FILE = GOLDEN / "losses.npz"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CONFIG = {
    "crop_padding": 4,
    "flip": True,
    "erase_prob": 0.5,
    "erase_area": (0.0625, 0.1),
    "erase_aspect": (0.99, 1.0),
    "mixup": 0.2,
}
SHAPES = [(8, 8, 3), (6, 10, 1), (9, 5, 3)]


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def over_keys(op, n: int, image, seed: int = 0) -> np.ndarray:
    """Applies `op` to one image with n keys: [n, H, W, C]."""
    mapped = jax.jit(jax.vmap(op, in_axes=(0, None)))
    return np.asarray(mapped(keys(n, seed), jnp.asarray(image)))


# ---- crop and flip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [1, 3])
def test_every_crop_offset_equals_numpy(shape, padding):
    image = random_images(*shape)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    offsets = np.indices((2 * padding + 1, 2 * padding + 1)).reshape(2, -1)
    crop = jax.jit(jax.vmap(lambda t, left: ops.crop_padded(jnp.asarray(image), padding, t, left)))
    got = crop(*offsets)
    assert got.dtype == jnp.uint8
    for window, top, left in zip(np.asarray(got), *offsets, strict=True):
        want = padded[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_array_equal(window, want)


def test_random_crop_takes_every_offset_equally_often():
    image = random_images(5, 5, 1) | 1  # no black pixel of its own: all crops differ
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    got = over_keys(ops.random_crop(1), 1800, image)
    counts = [
        (got == padded[top : top + 5, left : left + 5]).all((1, 2, 3)).sum()
        for top in range(3)
        for left in range(3)
    ]
    assert sum(counts) == 1800
    assert 140 < min(counts) and max(counts) < 260  # 200 expected, standard deviation 13


@pytest.mark.parametrize("shape", SHAPES)
def test_random_flip_mirrors_half_of_the_images(shape):
    image = random_images(*shape)
    got = over_keys(ops.random_flip(), 1000, image)
    same = (got == image).all((1, 2, 3))
    mirrored = (got == image[:, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and got.dtype == np.uint8
    assert 420 < mirrored.sum() < 580  # standard deviation 16


# ---- normalisation


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.1307,), (0.3081,))])
def test_normalize_is_exact_for_every_value(mean, std):
    image = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), (16, 16, len(mean)))
    want = (image / 255 - np.asarray(mean)) / np.asarray(std)
    got = jax.jit(ops.normalize(mean, std))(None, jnp.asarray(image))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    batch = jax.jit(lambda x: augment.eval_view(x, mean, std))(jnp.asarray(image)[None])
    assert batch.dtype == jnp.float32
    np.testing.assert_allclose(batch, want[None], rtol=0, atol=1e-6)


def test_normalize_rejects_other_channels():
    with pytest.raises(ValueError, match="3 channels of mean"):
        ops.normalize(MEAN, STD)(None, jnp.zeros((4, 4, 1), jnp.uint8))


# ---- random erasing


def erased_boxes(got: np.ndarray) -> np.ndarray:
    """(top, left, height, width) of the zeros in images of ones [n, H, W, C], after checks."""
    boxes = []
    for image in got:
        zero = image == 0
        assert (zero == zero[..., :1]).all()  # all channels alike
        rows, columns = np.flatnonzero(zero.any((1, 2))), np.flatnonzero(zero.any((0, 2)))
        if not len(rows):
            boxes.append((0, 0, 0, 0))
            continue
        box = (rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        assert zero[..., 0].sum() == box[2] * box[3]  # nothing but one full rectangle
        assert (image[~zero] == 1).all()
        boxes.append(box)
    return np.asarray(boxes)


@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 33, 1)])
@pytest.mark.parametrize(
    ("area", "aspect"), [((0.0625, 0.1), (0.99, 1.0)), ((0.1, 0.3), (0.5, 2.0))]
)
def test_erased_rectangles_have_the_asked_area_and_aspect(shape, area, aspect):
    got = over_keys(ops.random_erase(1.0, area, aspect), 600, np.ones(shape, np.float32))
    assert got.dtype == np.float32
    top, left, h, w = erased_boxes(got).T
    assert (h > 0).all()  # probability 1
    pixels = shape[0] * shape[1]
    # Rounding moves a side by at most 1/2.
    assert ((h + 0.5) * (w + 0.5) >= area[0] * pixels).all()
    assert ((h - 0.5) * (w - 0.5) <= area[1] * pixels).all()
    assert ((h + 0.5) / (w - 0.5) >= aspect[0]).all()
    assert ((h - 0.5) / (w + 0.5) <= aspect[1]).all()
    # Anywhere in the image, up to every edge.
    assert top.min() == 0 and left.min() == 0
    assert (top + h).max() == shape[0] and (left + w).max() == shape[1]
    areas = h * w / pixels
    assert abs(areas.mean() - np.mean(area)) < 0.1 * (area[1] - area[0]) + 0.01  # uniform


@pytest.mark.parametrize("prob", [0.0, 0.25, 0.5])
def test_erasing_happens_with_its_probability(prob):
    op = ops.random_erase(prob, (0.1, 0.2), (0.5, 2.0))
    happened = erased_boxes(over_keys(op, 1000, np.ones((16, 16, 1), np.float32)))[:, 2] > 0
    assert abs(happened.mean() - prob) <= 5 * np.sqrt(prob * (1 - prob) / 1000)


def test_the_first_attempt_that_fits_is_erased_and_none_is_left_alone():
    # Area 1/2 of 8x32 is 11.3 pixels square: too high for the image unless it is flat enough.
    image = np.ones((8, 32, 1), np.float32)
    never = over_keys(ops.random_erase(1.0, (0.5, 0.5), (1.0, 1.0)), 50, image)
    assert (never == 1).all()
    one = over_keys(ops.random_erase(1.0, (0.5, 0.5), (0.2, 1.0), attempts=1), 400, image)
    ten = over_keys(ops.random_erase(1.0, (0.5, 0.5), (0.2, 1.0), attempts=10), 400, image)
    once = (erased_boxes(one)[:, 2] > 0).mean()
    # Height rounds to at most 7 where aspect < 7.5^2 / 128.
    expected = np.log(7.5**2 / 128 / 0.2) / np.log(5)
    assert abs(once - expected) < 0.12
    heights = erased_boxes(ten)[:, 2]
    assert (heights > 0).mean() > 0.98 and heights.max() == 7


def test_the_fill_is_zero_after_normalisation():
    config = dict(CONFIG, crop_padding=0, flip=False, erase_prob=1.0)
    pipeline = augment.pipeline(config, MEAN, STD)
    assert [name for name, _ in pipeline] == ["normalize", "random_erase"]
    white = jnp.full((1, 32, 32, 3), 255, jnp.uint8)
    run = jax.jit(functools.partial(augment.make_views, pipeline, num_views=1))
    got = np.asarray(run(jax.random.key(0), white))
    erased = (got == 0).all(-1)
    assert 49 <= erased.sum() <= 121
    want = (1 - np.asarray(MEAN)) / np.asarray(STD)
    np.testing.assert_allclose(got[~erased], np.tile(want, ((~erased).sum(), 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.random_crop(-1), "augment.crop_padding=-1"),
        (lambda: ops.random_erase(1.5, (0.1, 0.2), (1, 1)), "augment.erase_prob=1.5"),
        (lambda: ops.random_erase(0.5, (0.2, 0.1), (1, 1)), r"augment.erase_area=\(0.2, 0.1\)"),
        (lambda: ops.random_erase(0.5, (0.1, 0.2), (0, 1)), r"augment.erase_aspect=\(0, 1\)"),
        (lambda: ops.normalize((0.5,), (0.5, 0.5)), "normalize: mean"),
        (lambda: ops.normalize((0.5,), (0.0,)), "normalize: mean"),
    ],
)
def test_op_errors_name_the_field(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# ---- views


def test_pipeline_order_and_switches():
    def names(crops_on="device", **changes):
        pipeline = augment.pipeline({**CONFIG, **changes}, MEAN, STD, crops_on=crops_on)
        return [name for name, _ in pipeline]

    assert names() == ["random_crop", "random_flip", "normalize", "random_erase"]
    assert names(crops_on="host") == ["random_flip", "normalize", "random_erase"]
    assert names(crop_padding=0, flip=False, erase_prob=0.0) == ["normalize"]
    assert set(views.CROPS) <= set(views.OPS)


@functools.cache
def compiled(num_views: int, channels: int):
    pipeline = augment.pipeline(CONFIG, MEAN[:channels], STD[:channels])
    return jax.jit(functools.partial(augment.make_views, pipeline, num_views=num_views))


def make(images, num_views, *, key=7, **first) -> np.ndarray:
    run = compiled(num_views, images.shape[-1])
    first = {"first_network": 0, "first_example": 0, **first}  # traced, so that one compile serves
    return np.asarray(run(jax.random.key(key), jnp.asarray(images), **first))


def test_views_differ_between_networks_images_and_steps():
    same = np.repeat(random_images(1, 12, 12, 3), 8, 0)  # eight times one image
    got = make(same, 4)
    assert got.shape == (4, 8, 12, 12, 3) and got.dtype == np.float32
    # 162 crops and flips, half of them erased: a few of the 32 views may coincide, not more.
    assert len(np.unique(got.reshape(32, -1), axis=0)) >= 28
    np.testing.assert_array_equal(got, make(same, 4))


def test_no_two_ops_images_networks_or_steps_share_random_numbers():
    draw = ("draw", lambda key, image: jnp.append(image, jax.random.bits(key)))
    empty = jnp.zeros((8, 0, 1, 1), jnp.uint32)
    run = jax.jit(lambda key: augment.make_views([draw] * 3, key, empty, num_views=4))
    drawn = np.stack([run(jax.random.key(step)) for step in (7, 8)])
    assert drawn.shape == (2, 4, 8, 3)
    assert len(np.unique(drawn)) == drawn.size


def test_parts_of_batch_and_networks_equal_the_whole_bitwise():
    images = random_images(8, 12, 12, 3)
    whole = make(images, 4)
    for network, example in itertools.product((0, 2), (0, 4)):
        part = make(images[example:][:4], 2, first_network=network, first_example=example)
        np.testing.assert_array_equal(part, whole[network:][:2, example:][:, :4])


def test_views_and_mixup_inside_shard_map():
    mesh = jax.make_mesh((2, 2), ("data", "net"), axis_types=(AxisType.Auto,) * 2)
    pipeline = augment.pipeline(CONFIG, MEAN, STD)
    images, labels = random_images(8, 12, 12, 3), np.arange(8)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P("net", "data"), P("net", "data"), P("data"), P()),
    )
    def part(key, images, labels):
        group, shard = jax.lax.axis_index("net"), jax.lax.axis_index("data")
        first = {"first_network": 2 * group, "first_example": 4 * shard}
        made = augment.make_views(pipeline, key, images, num_views=2, **first)
        perm_key = jax.random.fold_in(key, shard)
        return made, *augment.mixup(key, perm_key, made, labels, 1.0)

    made, mixed, partner, lam = map(np.asarray, jax.jit(part)(jax.random.key(7), images, labels))
    np.testing.assert_array_equal(made, make(images, 4))
    assert sorted(partner[:4]) == [0, 1, 2, 3] and sorted(partner[4:]) == [4, 5, 6, 7]
    want = lam * made + (1 - lam) * made[:, partner]
    np.testing.assert_allclose(mixed, want, rtol=0, atol=1e-6)


def test_a_shared_view_is_the_first_networks():
    images = random_images(8, 12, 12, 3)
    one = make(images, 1)
    assert one.shape == (1, 8, 12, 12, 3)
    np.testing.assert_array_equal(one, make(images, 4)[:1])


def test_streamed_views_each_come_from_their_own_image():
    images = random_images(2, 4, 12, 12, 3)
    got = make(images, 2)
    for s in range(2):
        np.testing.assert_array_equal(got[s], make(images[s], 2)[s])
    with pytest.raises(ValueError, match=r"\[3, B, H, W, C\]"):
        make(images, 3)


def test_grayscale_views_that_are_not_square():
    images = random_images(3, 6, 10, 1)
    got = make(images, 2)
    assert got.shape == (2, 3, 6, 10, 1) and np.isfinite(got).all()
    levels = (images / 255 - MEAN[0]) / STD[0]
    allowed = np.concatenate([levels.ravel(), [0.0, -MEAN[0] / STD[0]]])  # erased, padding
    assert np.abs(got.reshape(-1, 1) - allowed.reshape(1, -1)).min(1).max() < 1e-6


def test_one_view_is_its_ops_one_after_the_other():
    images = random_images(8, 12, 12, 3)
    pipeline = augment.pipeline(CONFIG, MEAN, STD)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 2), 9 + 5)
    want = jnp.asarray(images[5])
    for (_, op), op_key in zip(pipeline, jax.random.split(key, len(pipeline)), strict=True):
        want = op(op_key, want)
    got = make(images, 1, first_network=2, first_example=9)
    np.testing.assert_allclose(got[0, 5], want, rtol=0, atol=1e-6)


# ---- mixup


def from_reference(x: np.ndarray, channels: int) -> np.ndarray:
    """Converts the reference's views: [N, S*C, H, W] -> [S, N, H, W, C]."""
    n, planes, height, width = x.shape
    split = x.reshape(n, planes // channels, channels, height, width)
    return split.transpose(1, 0, 3, 4, 2)


def test_mix_equals_the_reference():
    with np.load(FILE) as data:
        ref = {
            k: data[f"splitnet/mixup_data/{k}"]
            for k in ("x", "y", "lam", "index", "mixed_x", "y_b")
        }
    mixed, partner = augment.mix(
        jnp.asarray(from_reference(ref["x"], 3)), jnp.asarray(ref["y"]), ref["lam"], ref["index"]
    )
    np.testing.assert_allclose(mixed, from_reference(ref["mixed_x"], 3), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(partner, ref["y_b"])


def test_mix_by_hand():
    given = jnp.asarray([[10.0, 20.0], [30.0, 50.0]]).reshape(2, 2, 1, 1, 1)
    mixed, partner = augment.mix(given, jnp.asarray([3, 8]), 0.75, jnp.asarray([1, 0]))
    np.testing.assert_allclose(mixed.reshape(2, 2), [[12.5, 17.5], [35.0, 45.0]], rtol=1e-6)
    np.testing.assert_array_equal(partner, [8, 3])


def test_mixup_shares_lambda_and_permutation_between_networks():
    given = np.random.default_rng(0).normal(size=(3, 8, 2, 2, 1)).astype(np.float32)
    labels = np.arange(8)
    run = jax.jit(augment.mixup, static_argnames="alpha")
    mixed, partner, lam = run(jax.random.key(1), jax.random.key(2), given, labels, alpha=1.0)
    assert lam.shape == () and lam.dtype == jnp.float32 and 0 <= lam <= 1
    assert sorted(partner.tolist()) == labels.tolist()
    lam = float(lam)
    want = lam * given + (1 - lam) * given[:, np.asarray(partner)]
    np.testing.assert_allclose(mixed, want, rtol=0, atol=1e-6)
    # Lambda follows from its own key alone, the permutation from the other.
    _, other_partner, same_lam = run(jax.random.key(1), jax.random.key(3), given, labels, alpha=1.0)
    _, same_partner, other_lam = run(jax.random.key(4), jax.random.key(2), given, labels, alpha=1.0)
    assert float(same_lam) == lam and float(other_lam) != lam
    assert (same_partner == partner).all() and (other_partner != partner).any()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lambda_is_beta_distributed(alpha):
    given, labels = jnp.zeros((1, 2, 1, 1, 1)), jnp.zeros(2, jnp.int32)
    perm_key = jax.random.key(0)
    draw = jax.jit(jax.vmap(lambda k: augment.mixup(k, perm_key, given, labels, alpha)[2]))
    lam = np.asarray(draw(keys(4000)))
    assert ((lam >= 0) & (lam <= 1)).all()
    assert abs(lam.mean() - 0.5) < 0.04
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.var() - variance) < 0.05 * variance


def test_mixup_of_alpha_zero_is_an_error():
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match="augment.mixup=0"):
        augment.mixup(key, key, jnp.zeros((1, 2, 1, 1, 1)), jnp.zeros(2, jnp.int32), 0)


# ---- other crops, and cutout


@pytest.mark.parametrize("padding", [1, 3])
def test_reflected_padding_equals_numpy(padding):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            got = ops.crop_padded(image, padding, top, left, "reflect")
            np.testing.assert_array_equal(got, padded[top : top + 5, left : left + 7])


def test_too_small_an_image_is_not_reflected():
    op = ops.random_crop(4, "reflect")
    with pytest.raises(ConfigError, match="^augment.crop_padding=4: must be below 4"):
        op(jax.random.key(0), jnp.zeros((4, 9, 1), jnp.uint8))
    with pytest.raises(ConfigError, match="^augment.crop_mode='edge': must be one of zeros, refl"):
        ops.random_crop(4, "edge")


@pytest.mark.parametrize(("side", "centre"), [(3, (2, 2)), (4, (0, 6)), (5, (4, 3)), (9, (2, 2))])
def test_cut_square_by_hand(side, centre):
    image = np.ones((5, 7, 2), np.float32)
    want = image.copy()
    for row in range(5):
        for column in range(7):
            near = (row - centre[0] + side // 2, column - centre[1] + side // 2)
            if all(0 <= offset < side for offset in near):
                want[row, column] = 0
    assert (want == 0).any()
    np.testing.assert_array_equal(ops.cut_square(image, *centre, side), want)


def test_cutout_is_centred_at_every_pixel_equally_often():
    keys = jax.random.split(jax.random.key(0), 4000)
    cut = jax.vmap(lambda key: ops.cutout(1)(key, jnp.ones((4, 5, 1))))(keys)
    counts = np.asarray((cut == 0).sum((0, 3)))
    assert counts.sum() == 4000
    assert (abs(counts - 200) < 5 * 200**0.5).all()
    with pytest.raises(ConfigError, match="^augment.cutout=-2: must be above 0"):
        ops.cutout(-2)


def test_resized_box_equals_pillow():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for top, left, h, w in ((0, 0, 12, 16), (3, 2, 6, 8), (1, 5, 7, 3), (11, 15, 1, 1)):
        got = np.asarray(ops.resize_box(image, top, left, h, w), int)
        part = Image.fromarray(image[top : top + h, left : left + w])
        want = np.asarray(part.resize((16, 12), Image.Resampling.BILINEAR), int)
        assert abs(got - want).max() <= 1
        assert got.shape == image.shape


def test_random_resized_crops_have_the_asked_area():
    """The values of a ramp reveal the box: its area is in [0.25, 1], its aspect in [3/4, 4/3]."""
    rows, columns = np.mgrid[0:40, 0:40].astype(np.uint8) * 6
    image = np.stack([rows, columns, rows], -1)
    op = ops.random_resized_crop(0.25)
    keys = jax.random.split(jax.random.key(0), 500)
    crops = np.asarray(jax.vmap(lambda key: op(key, image))(keys), int)
    h, w = ((np.ptp(crops[..., i], (1, 2)) / 6 + 1) for i in (0, 1))
    area = h * w / 1600
    assert (area > 0.22).all() and (area <= 1.001).all()
    assert abs(area.mean() - 0.6) < 0.05  # larger boxes fit less often than smaller ones
    assert ((w / h > 0.7) & (w / h < 1.43)).all()
    with pytest.raises(ConfigError, match="^data.scale_min=0: must be in"):
        ops.random_resized_crop(0)


def test_an_image_is_cropped_once():
    fields = dict(CONFIG, crop_padding=4, random_resized_crop=True)
    with pytest.raises(ConfigError, match="^augment.crop_padding=4: must be 0 with"):
        augment.pipeline(fields, (0.5,), (0.5,))
    fields = dict(CONFIG, crop_padding=0, random_resized_crop=True, cutout=2)
    for crops_on in ("device", "host"):
        made = [n for n, _ in augment.pipeline(fields, (0.5,), (0.5,), crops_on=crops_on)]
        assert ("random_resized_crop" in made) == (crops_on == "device")
        assert made[-1] == "cutout"
