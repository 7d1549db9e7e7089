"""AutoAugment and RandAugment: tables, notation, draws, and their place among the views."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsplit.augment import autoaugment, pixels, policies, randaugment, views
from jaxsplit.augment.pixels import BICUBIC, ENHANCE, GEOMETRIC
from jaxsplit.errors import ConfigError
from tests.support.policies import our_name, randaugment_params, random_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)

# ---- tables


def test_autoaugment_tables_equal_the_references(parity):
    facts = json.loads((parity / "augment_facts.json").read_text())["autoaugment"]
    for name, theirs in (
        ("cifar10", "CIFAR10Policy"),
        ("svhn", "SVHNPolicy"),
        ("imagenet", "ImageNetPolicy"),
    ):
        want = [
            [(our_name(e[f"op{i}"]), e[f"p{i}"], e[f"mag_idx{i}"]) for i in (1, 2)]
            for e in facts["policies"][theirs]
        ]
        assert autoaugment.subpolicies(name) == [[*pair] for pair in want]
    assert {our_name(op) for op in facts["magnitude_ranges"]} == autoaugment.MAGNITUDES.keys()
    for op, magnitudes in facts["magnitude_ranges"].items():
        np.testing.assert_allclose(autoaugment.MAGNITUDES[our_name(op)], magnitudes, atol=1e-12)


def test_randaugment_levels_equal_the_references(parity):
    facts = json.loads((parity / "augment_facts.json").read_text())["randaugment"]
    increasing = facts["rand_increasing_transforms"]
    assert [our_name(op) for op in facts["rand_transforms"]] == list(randaugment.OPS)
    weights = {our_name(op): weight for op, weight in facts["choice_weights_0"].items()}
    assert weights == randaugment.OPS
    for theirs in dict.fromkeys(facts["rand_transforms"] + increasing):
        for level, (arg, *_) in (facts["level_to_arg"][theirs] or {}).items():
            op, inc = our_name(theirs), theirs.endswith("Increasing")
            p = randaugment_params(
                op, float(level), 1, (10, 20), interpolation=BICUBIC, increasing=inc
            )
            if op in ENHANCE:
                assert p.factor == pytest.approx(arg, rel=1e-7), (theirs, level)
            elif op in GEOMETRIC:
                want = pixels.params(op, arg, shape=(10, 20), interpolation=BICUBIC, xp=np)
                np.testing.assert_allclose(p.matrix, want.matrix, rtol=1e-5, atol=1e-6)
                assert (p.branch, p.variant) == (pixels.FILTERED, BICUBIC)
            else:
                want = pixels.params(op, arg, shape=(10, 20), xp=np)
                np.testing.assert_array_equal(p.point, want.point, err_msg=f"{theirs} {level}")


@pytest.mark.slow
@pytest.mark.parametrize("increasing", [False, True])
def test_traced_levels_equal_static_ones(increasing):
    levels = np.random.default_rng(0).uniform(0, 10, 40)
    levels = (np.round(levels * 65536) / 65536).astype(np.float32)  # as they are drawn
    for sign in (1, -1):
        for interpolation in (None, BICUBIC):
            some = dict(shape=(10, 20), interpolation=interpolation, increasing=increasing)
            traced = jax.vmap(
                lambda level, op, sign=sign, some=some: randaugment.params(op, level, sign, **some)
            )
            traced = jax.jit(traced)(levels, np.arange(40) % 15)
            static = [
                randaugment.params(i % 15, float(level), sign, xp=np, **some)
                for i, level in enumerate(levels)
            ]
            for a, b in zip(traced, pixels.stack(static, np), strict=True):
                if a.dtype == jnp.int32 and a.ndim == 2 and a.shape[1] == 6:  # 16.16
                    assert np.abs(np.asarray(a) - b).max() <= 1
                else:
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_signs_of_randaugment():
    """Geometric ops always take the sign, enhancing ops only with `increasing`, others never."""
    for op in randaugment.OPS:
        for increasing in (False, True):
            plus, minus = (
                randaugment_params(
                    op, 6.0, sign, (10, 20), interpolation=BICUBIC, increasing=increasing
                )
                for sign in (1, -1)
            )
            differ = any(not np.array_equal(a, b) for a, b in zip(plus, minus, strict=True))
            assert differ == (op in GEOMETRIC or (op in ENHANCE and increasing)), op


# ---- notation


def test_randaugment_notation_equals_the_references(parity):
    facts = json.loads((parity / "augment_facts.json").read_text())["randaugment"]
    for notation, want in facts["config_examples"].items():
        got = randaugment.parse(notation)
        assert got.magnitude == want["magnitude"], notation
        assert got.layers == want["num_layers"], notation
        assert got.magnitude_std == want["magnitude_std"], notation
        assert got.weighted == (want["choice_weights"] is not None), notation
        if "inc0" not in notation:  # which the reference takes for inc1
            assert got.increasing == (want["ops"] == facts["rand_increasing_transforms"])
        if got.weighted:
            np.testing.assert_allclose(list(randaugment.OPS.values()), want["choice_weights"])
        assert want["prob"] == randaugment.PROB


def test_inc0_means_not_increasing():
    assert not randaugment.parse("rand-m9-inc0").increasing
    assert randaugment.parse("rand-m9-inc1").increasing


@pytest.mark.parametrize(
    "notation",
    "rand-x9 rand-m rand-m11 rand-m9-m8 rand-n0 rand-n2.5 rand-n11 rand-inc2 rand-w1 rand-mstd-1 "
    "rand- m9 randm9 Rand-m9 rand-m9- rand-m9-mstd0.5x rand-mstd1e3 original".split(),
)
def test_bad_notation_names_what_is_allowed(notation):
    with pytest.raises(ConfigError) as error:
        policies.policy({"randaugment": notation}, IMAGENET_MEAN)
    assert str(error.value).startswith(f"augment.randaugment={notation!r}: must be ")
    assert "-mstd" in str(error.value) and "rand-m9-mstd0.5" in str(error.value)


@pytest.mark.parametrize(
    "augment, mean, message",
    [
        (
            {"autoaugment": "cifar100"},
            IMAGENET_MEAN,
            "augment.autoaugment='cifar100': must be '' or one of cifar10, svhn, imagenet",
        ),
        (
            {"autoaugment": "svhn", "randaugment": "rand-m9"},
            IMAGENET_MEAN,
            "augment.randaugment='rand-m9': must be '' with augment.autoaugment='svhn'",
        ),
        (
            {"resample": "bicubic"},
            IMAGENET_MEAN,
            "augment.resample='bicubic': must be one of reference, nearest",
        ),
        (
            {"autoaugment": "svhn"},
            (0.5, 0.5),
            "augment.autoaugment='svhn': needs images of 1 or 3 channels, these have 2",
        ),
    ],
)
def test_bad_fields(augment, mean, message):
    with pytest.raises(ConfigError) as error:
        policies.policy(augment, mean)
    assert str(error.value) == message


# ---- draws


@pytest.fixture
def keys() -> jax.Array:
    return jax.random.split(jax.random.key(0), 20_000)


def near(count: float, n: int, prob: float) -> bool:
    """Whether a count is within five standard errors of n * prob."""
    return abs(count - n * prob) <= 5 * np.sqrt(n * prob * (1 - prob)) + 1e-9


def drawn(monkeypatch, op, keys) -> pixels.Params:
    """The Params that the policy `op` would apply, for each key."""
    monkeypatch.setattr(pixels, "apply_branches", lambda image, drawn, fill, branches: drawn)
    image = jnp.zeros((8, 8, 3), jnp.uint8)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(op, (0, None)))(keys, image))


@pytest.mark.parametrize("name", autoaugment.POLICIES)
def test_draws_of_autoaugment(monkeypatch, keys, name):
    real = autoaugment.table(name, (8, 8))
    rows, order, signs = np.indices(real.branch.shape)
    marked = real._replace(branch=np.ones_like(rows), variant=rows, factor=2 * order + signs)
    monkeypatch.setattr(autoaugment, "table", lambda *a, **k: marked)
    got = drawn(monkeypatch, autoaugment.make(name), keys)
    np.testing.assert_array_equal(got.factor // 2, np.tile([0, 1], (len(keys), 1)))
    np.testing.assert_array_equal(got.variant[:, 0], got.variant[:, 1])
    for row, pair in enumerate(autoaugment.subpolicies(name)):
        mine = got.variant[:, 0] == row
        assert near(mine.sum(), len(keys), 1 / 25)
        applied = got.branch[mine] != pixels.KEEP
        for i, (_, prob, _) in enumerate(pair):
            assert near(applied[:, i].sum(), mine.sum(), prob)
        both = pair[0][1] * pair[1][1]
        assert near(applied.all(1).sum(), mine.sum(), both)
    for i in range(2):
        assert near((got.factor[:, i] % 2).sum(), len(keys), 0.5)


def test_signs_of_autoaugment():
    for op in autoaugment.MAGNITUDES:
        plus, minus = (autoaugment.params(op, 5, s, (8, 8)) for s in (1, -1))
        differ = any(not np.array_equal(a, b) for a, b in zip(plus, minus, strict=True))
        signed = op in ENHANCE or op.startswith(("shear", "translate"))
        assert differ == signed, op
    brighter, darker = (autoaugment.params("brightness", 9, s, (8, 8)) for s in (1, -1))
    assert (brighter.factor, darker.factor) == (pytest.approx(1.9), pytest.approx(0.1))


def draws_of_randaugment(monkeypatch, keys, notation: str) -> pixels.Params:
    """Params that mark each draw: branch is whether an op is applied, variant the op, factor the
    level, fixed the sign and the interpolation.
    """

    def marked(chosen, level, sign, shape, *, interpolation, increasing):
        return pixels.Params(1, chosen, level, 0, 0, jnp.stack([sign, interpolation]))

    monkeypatch.setattr(randaugment, "params", marked)
    settings = randaugment.parse(notation)
    monkeypatch.setattr(pixels, "apply_branches", lambda image, drawn, fill, branches: drawn)
    op = randaugment.make(settings, IMAGENET_MEAN)
    image = jnp.zeros((8, 8, 3), jnp.uint8)

    def run(key):
        d = op(key, image)
        return d.branch, d.variant, d.factor, d.fixed

    branch, variant, factor, fixed = map(np.asarray, jax.jit(jax.vmap(run))(keys))
    return pixels.Params(branch, variant, factor, None, None, fixed)


def test_draws_of_randaugment(monkeypatch, keys):
    got = draws_of_randaugment(monkeypatch, keys, "rand-m6-mstd0.5-n3")
    n = got.branch.size
    assert got.branch.shape == (len(keys), 3)
    assert near((got.branch != 0).sum(), n, 0.5)
    for op in range(15):
        assert near((got.variant == op).sum(), n, 1 / 15)
    assert near((got.variant[:, 0] == got.variant[:, 1]).sum(), len(keys), 1 / 15)
    assert near((got.fixed[..., 0] == 1).sum(), n, 0.5)
    assert near((got.fixed[..., 1] == BICUBIC).sum(), n, 0.5)
    assert abs(got.factor.mean() - 6) < 5 * 0.5 / np.sqrt(n)
    assert abs(got.factor.std() / 0.5 - 1) < 5 / np.sqrt(2 * n)
    assert near((got.factor < 5.5).sum(), n, 0.158655)  # normal: one deviation below the mean


def test_magnitudes_stay_in_range(monkeypatch, keys):
    levels = draws_of_randaugment(monkeypatch, keys, "rand-m9-mstd2").factor
    assert levels.min() >= 0 and levels.max() == 10
    assert near((levels == 10).sum(), levels.size, 0.308538)
    assert (draws_of_randaugment(monkeypatch, keys, "rand-m9").factor == 9).all()
    assert (draws_of_randaugment(monkeypatch, keys, "rand").factor == 10).all()


def test_weighted_draws_are_without_replacement(monkeypatch, keys):
    got = draws_of_randaugment(monkeypatch, keys, "rand-m9-w0").variant
    weights = np.asarray(list(randaugment.OPS.values()))
    first, second = got.T
    assert (first != second).all()
    for op, weight in enumerate(weights):
        assert near((first == op).sum(), len(keys), weight)
        after = sum(w * weight / (1 - w) for i, w in enumerate(weights) if i != op)
        assert near((second == op).sum(), len(keys), after)


# ---- in the pipeline


FORMS = [
    {"autoaugment": "imagenet"},
    {"randaugment": "rand-m9-mstd0.5"},
    {"randaugment": "rand-m9-n1-inc1-w0", "resample": "nearest"},
]
CONFIG = {"crop_padding": 2, "flip": True, "erase_prob": 0.5} | {
    "erase_area": (0.0625, 0.1),
    "erase_aspect": (0.99, 1.0),
}


def test_the_policy_stands_between_flip_and_normalize():
    ops = views.pipeline(CONFIG | FORMS[0], (0.5,) * 3, (0.2,) * 3)
    names = [name for name, _ in ops]
    assert names == ["random_crop", "random_flip", "policy", "normalize", "random_erase"]
    streamed = views.pipeline(CONFIG | FORMS[0], (0.5,) * 3, (0.2,) * 3, crops_on="host")
    assert [name for name, _ in streamed] == names[1:]
    off = views.pipeline(CONFIG, (0.5,) * 3, (0.2,) * 3)
    assert "policy" not in [name for name, _ in off]


@pytest.mark.slow
@pytest.mark.parametrize("fields", FORMS)
def test_views_do_not_depend_on_the_mesh_nor_on_the_form(monkeypatch, fields):
    """A loop over images (CPU) and all images at once (accelerators), split over 4 x 2 devices."""
    images = np.stack([random_image(12, 10, 3, seed=i) for i in range(8)])
    ops = views.pipeline(CONFIG | fields, (0.4, 0.5, 0.5), (0.2,) * 3)
    key = jax.random.key(1)
    mesh = jax.make_mesh((4, 2), ("data", "net"), axis_types=(AxisType.Auto,) * 2)

    def cut(images):
        return views.make_views(
            ops,
            key,
            images,
            num_views=2,
            first_network=2 * jax.lax.axis_index("net"),
            first_example=2 * jax.lax.axis_index("data"),
        )

    results = [np.asarray(jax.jit(lambda x: views.make_views(ops, key, x, num_views=4))(images))]
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        sharded = jax.shard_map(cut, mesh=mesh, in_specs=P("data"), out_specs=P("net", "data"))
        results.append(np.asarray(jax.jit(sharded)(images)))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)
    assert not np.allclose(results[0][0], results[0][1])  # networks see different views


@pytest.mark.slow
@pytest.mark.parametrize("fields", [FORMS[1], FORMS[0]])
def test_a_gray_image_is_treated_as_an_rgb_image_of_that_gray(fields):
    image = random_image(14, 15, 1)
    keys = jax.random.split(jax.random.key(2), 200)
    gray = jax.jit(jax.vmap(policies.policy(fields, (0.5,)), (0, None)))(keys, image)
    rgb = jax.jit(jax.vmap(policies.policy(fields, (0.5,) * 3), (0, None)))(
        keys, np.repeat(image, 3, -1)
    )
    assert gray.shape == (200, 14, 15, 1) and gray.dtype == jnp.uint8
    np.testing.assert_array_equal(np.repeat(gray, 3, -1), rgb)
    changed = (np.asarray(gray) != image).any((1, 2, 3)).mean()
    assert 0.3 < changed < 0.95


@pytest.mark.slow
def test_resample_nearest_leaves_out_the_filters(monkeypatch, keys):
    for fields in FORMS[:2]:
        geometric = {
            resample: set(
                np.unique(
                    drawn(
                        monkeypatch,
                        policies.policy(fields | {"resample": resample}, IMAGENET_MEAN),
                        keys[:500],
                    ).branch
                )
            )
            for resample in policies.RESAMPLE
        }
        assert pixels.FILTERED in geometric["reference"]
        assert pixels.FILTERED not in geometric["nearest"]
        assert pixels.NEAREST in geometric["nearest"]


@pytest.mark.slow
def test_pixels_from_outside_are_gray_or_the_mean():
    """RandAugment fills with ImageNet's mean colour, AutoAugment with (128, 128, 128)."""
    black = jnp.zeros((16, 16, 3), jnp.uint8)
    keys = jax.random.split(jax.random.key(3), 300)
    for fields, want in ((FORMS[0], (128, 128, 128)), (FORMS[1], (124, 116, 104))):
        op = jax.jit(jax.vmap(policies.policy(fields, IMAGENET_MEAN), (0, None)))
        corners = np.asarray(op(keys, black))[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3)
        assert (corners == want).all(1).any()
