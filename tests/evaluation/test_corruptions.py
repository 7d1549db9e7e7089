"""The corruptions beside SciPy, Pillow and the published programs' definitions."""

import colorsys
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxsplit.evaluation import corruptions
from jaxsplit.evaluation.corruptions import blur, digital, resampling, severities, weather
from jaxsplit.evaluation.corruptions import corrupt as corrupt_
from tests.support.samples import every, first


def corrupt(kind, images, severity, first=0, **more):
    return np.asarray(corrupt_(kind, images, severity, np.arange(len(images)) + first, **more))


@pytest.fixture(scope="module")
def images():
    """uint8[8, 32, 32, 3]: smooth colours with edges, as photographs have."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(8, 32, 32, 3)), (0, 3, 3, 0))
    smooth = smooth / smooth.std() * 50 + 128
    smooth[:, 8:20, 10:24] += rng.normal(size=(8, 1, 1, 3)) * 60
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def flat():
    return np.full((8, 32, 32, 3), 128, np.uint8)


def mse(images, changed):
    return float(((images.astype(float) - changed) ** 2).mean())


@pytest.mark.parametrize("kind", every(3, corruptions.KINDS))
def test_every_kind_keeps_shape_and_dtype_and_repeats_itself(kind, images):
    one = corrupt(kind, images, 5)
    assert one.dtype == np.uint8 and one.shape == images.shape
    assert mse(images, one) > 1
    np.testing.assert_array_equal(corrupt(kind, images, 5), one)
    # An image is corrupted alike in whatever batch it comes.
    rolled = np.asarray(corrupt_(kind, np.roll(images, 3, 0), 5, np.roll(np.arange(8), 3)))
    np.testing.assert_array_equal(np.roll(rolled, -3, 0), one)


RANDOM = sorted(
    set(corruptions.KINDS)
    - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
)


@pytest.mark.parametrize("kind", first(3, RANDOM))
def test_images_and_seeds_get_random_numbers_of_their_own(kind, images):
    same = images[:1].repeat(8, 0)
    one = corrupt(kind, same, 5)
    assert (one[0] != one[1]).any()
    assert (corrupt(kind, same, 5, seed=1) != one).any()


@pytest.mark.parametrize(
    "kind",
    first(
        3, sorted(set(corruptions.KINDS) - {"glass_blur", "elastic_transform", "frost", "pixelate"})
    ),
)
def test_severities_change_images_more_and_more(kind, images):
    """The four left out are not ordered so by their published constants."""
    errors = [mse(images, corrupt(kind, images, s)) for s in corruptions.SEVERITIES]
    assert errors == sorted(errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 9, 13, 3)])
def test_other_sizes_and_gray(shape):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for kind in ("glass_blur", "snow", "fog", "elastic_transform", "pixelate", "jpeg_compression"):
        assert corrupt(kind, images, 3).shape == shape


def test_large_images_get_the_severities_of_imagenet():
    image = np.random.default_rng(1).integers(0, 256, (1, 80, 96, 3), dtype=np.uint8)
    got = corrupt("contrast", image, 5)
    x = image / 255
    mean = x.mean((1, 2), keepdims=True)
    assert np.abs(got - ((x - mean) * 0.05 + mean) * 255).max() < 1.01


def test_wrong_names(images):
    with pytest.raises(ValueError, match="kind='rain': must be one of gaussian_noise"):
        corrupt("rain", images, 1)
    with pytest.raises(ValueError, match="severity=6"):
        corrupt("fog", images, 6)


# ---- Noise


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_noise(flat, severity):
    noise = (corrupt("gaussian_noise", flat, severity) + 0.5) / 255 - 128 / 255
    scale = severities.CIFAR["gaussian_noise"][severity - 1]
    assert abs(noise.mean()) < 5 * scale / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("severity", [1, 5])
def test_shot_noise(flat, severity):
    counts = (corrupt("shot_noise", flat, severity) + 0.5) / 255
    photons, level = severities.CIFAR["shot_noise"][severity - 1], 128 / 255
    assert counts.mean() == pytest.approx(level, abs=0.005)
    assert counts.var() == pytest.approx(level / photons, rel=0.05)


@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise(flat, severity):
    got = corrupt("impulse_noise", flat, severity)
    share = severities.CIFAR["impulse_noise"][severity - 1]
    assert set(np.unique(got)) == {0, 128, 255}
    for level in (0, 255):
        assert (got == level).mean() == pytest.approx(share / 2, rel=0.2)


# ---- Blur


@pytest.mark.parametrize("radius,sigma", [(0.5, 0.6), (1.5, 0.1), (3, 0.1), (8, 0.5), (10, 0.5)])
def test_disk(radius, sigma):
    half = 8 if radius <= 8 else radius
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = (y**2 + x**2 <= radius**2).astype(float)
    reach = 1 if radius <= 8 else 2
    want = ndimage.gaussian_filter(kernel / kernel.sum(), sigma, mode="mirror", radius=reach)
    np.testing.assert_allclose(blur.disk(radius, sigma), want, atol=1e-7)


def test_defocus_blur(images):
    kernel = blur.disk(1.5, 0.1)
    want = ndimage.correlate(images / 255, kernel[None, :, :, None], mode="mirror") * 255
    got = corrupt("defocus_blur", images, 5)
    assert np.abs(got - np.floor(want + 1e-3)).max() <= 1


@pytest.mark.parametrize("mode", ["nearest", "reflect"])
@pytest.mark.parametrize("sigma,truncate", [(0.05, 4), (0.4, 4), (1.5, 4), (6.4, 3)])
def test_gaussian_matrix(mode, sigma, truncate):
    x = np.random.default_rng(2).normal(size=(9, 3))
    want = ndimage.gaussian_filter1d(x, sigma, 0, mode=mode, truncate=truncate)
    np.testing.assert_allclose(resampling.gaussian(9, sigma, mode, truncate) @ x, want, atol=1e-6)


@pytest.mark.parametrize("reach", [1, 4])
def test_glass_moves_pixels_as_the_walk_does(reach):
    size = 24
    image = np.random.default_rng(3).integers(0, 256, (size, size, 3)) / 255
    key, eye = jax.random.key(5), jnp.eye(size)
    got = blur.glass(key, jnp.asarray(image, jnp.float32), eye, eye, reach, 2)
    want = np.floor(image * 255 + 0.001)
    for i in range(2):
        moves = jax.random.randint(jax.random.fold_in(key, i), (2, size, size), -reach, reach)
        dy, dx = np.asarray(moves)
        for h in range(size - reach, reach, -1):
            for w in range(size - reach, reach, -1):
                want[h, w] = want[h + dy[h, w], w + dx[h, w]]
    np.testing.assert_allclose(got * 255, want, atol=1e-3)


@pytest.mark.parametrize("degrees", [-135.0, -90.0, -33.0, 0.0, 45.0])
def test_motion(degrees):
    """By ImageMagick's definition: offsets of whole pixels along a line, the edge repeated."""
    rng = np.random.default_rng(4)
    image, kernel = rng.random((12, 10, 3)), blur.half_gaussian(3, 1.5, 9)
    assert (kernel > 0).sum() == 7 and kernel.sum() == pytest.approx(1)
    want = np.zeros_like(image)
    angle = np.deg2rad(degrees)
    for i, weight in enumerate(kernel):
        down, right = np.ceil(i * np.sin(angle) - 0.5), np.ceil(i * np.cos(angle) - 0.5)
        y = (np.arange(12) + int(down)).clip(0, 11)
        x = (np.arange(10) + int(right)).clip(0, 9)
        want += weight * image[y][:, x]
    got = blur.motion(jnp.asarray(image, jnp.float32), jnp.float32(degrees), jnp.asarray(kernel))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.25, 2.25, 4.5])
@pytest.mark.parametrize("size", [8, 32])
def test_zoom_matrix(factor, size):
    image = np.random.default_rng(6).random((size, size))
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    part = image[first : first + kept, first : first + kept]
    large = ndimage.zoom(part, factor, order=1)
    trim = (len(large) - size) // 2
    want = large[trim : trim + size, trim : trim + size]
    matrix = resampling.zoom(size, factor)
    np.testing.assert_allclose(matrix @ image @ matrix.T, want, atol=1e-6)


# ---- Weather and light


def test_brightness_is_that_of_hsv(images):
    got = corrupt("brightness", images, 4)
    for y, x in np.ndindex(32, 32):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[0, y, x] / 255))
        want = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))) * 255
        assert np.abs(got[0, y, x] - np.floor(want + 1e-3)).max() <= 1


def plasma_of_quadrants(noise, size, decay):
    """Diamond-square on a grid that wraps around, point by point."""
    values, step, wibble = np.zeros((size, size)), size, 100.0
    for level in range(size.bit_length() - 1):
        half = step // 2
        amplitude = wibble * wibble * noise[level]
        for y, x in np.ndindex(size, size):
            if y % step == half and x % step == half:
                near = [
                    values[(y + a) % size, (x + b) % size]
                    for a in (-half, half)
                    for b in (-half, half)
                ]
                values[y, x] = np.mean(near) + amplitude[y, x]
        old = values.copy()
        for y, x in np.ndindex(size, size):
            if (y % step, x % step) in ((half, 0), (0, half)):
                near = [(y + half, x), (y - half, x), (y, x + half), (y, x - half)]
                values[y, x] = np.mean([old[a % size, b % size] for a, b in near]) + amplitude[y, x]
        step, wibble = half, wibble / decay
    values -= values.min()
    return values / values.max()


def test_plasma():
    key = jax.random.key(7)
    noise = [
        np.asarray(jax.random.uniform(jax.random.fold_in(key, i), (16, 16), minval=-1))
        for i in range(4)
    ]
    got = np.asarray(weather.plasma(key, (16, 12), jnp.float32(2)))
    np.testing.assert_allclose(got, plasma_of_quadrants(noise, 16, 2)[:, :12], atol=1e-4)
    assert weather.plasma(key, (8, 8), jnp.float32(3)).max() == 1


def test_fog_of_a_flat_image_is_its_plasma(flat):
    got = corrupt("fog", flat, 5) / 255
    level, thickness = 128 / 255, 1.5
    share = level / (level + thickness)
    assert got.min() == pytest.approx(level * share, abs=0.01)
    assert got.max() == pytest.approx((level + thickness) * share, abs=0.01)
    assert (got[..., 0] == got[..., 1]).all()
    assert (corrupt("fog", flat * 0, 5) == 0).all()


def test_snow_and_frost_make_images_brighter(images):
    for kind in ("snow", "frost"):
        assert corrupt(kind, images // 2, 2).mean() > (images // 2).mean() + 5


# ---- Contrast, warping, pixels, JPEG


def test_contrast(images):
    x = images / 255
    mean = x.mean((1, 2), keepdims=True)
    want = ((x - mean) * 0.4 + mean).clip(0, 1) * 255
    got = corrupt("contrast", images, 3)
    assert np.abs(got - np.floor(want + 1e-3)).max() <= 1
    assert (got == np.floor(want + 1e-3)).mean() > 0.999


def test_bilinear_is_map_coordinates():
    rng = np.random.default_rng(8)
    image = rng.random((9, 7))
    y, x = rng.uniform(-4, 12, (2, 9, 7))
    for outside, mode in ((digital._mirror_edge, "reflect"), (digital._mirror_once, "mirror")):
        want = ndimage.map_coordinates(image, (y, x), order=1, mode=mode)
        got = digital.bilinear(jnp.asarray(image, jnp.float32)[..., None], y, x, outside)[..., 0]
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_affine_of_three_points():
    source = np.array([[1, 2], [5, 3], [2, 7]], np.float32)
    target = np.array([[0, 0], [4, 1], [2, 6]], np.float32)
    x, y = digital._affine(*map(jnp.asarray, (source, target)), source[:, 0], source[:, 1])
    np.testing.assert_allclose(np.stack([x, y], 1), target, atol=1e-5)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_pixelate_is_pillows(images, severity):
    few = int(32 * severities.CIFAR["pixelate"][severity - 1])
    got = corrupt("pixelate", images, severity)
    for image, mine in zip(images, got, strict=True):
        picture = Image.fromarray(image).resize((few, few), Image.Resampling.BOX)
        want = np.asarray(picture.resize((32, 32), Image.Resampling.BOX)).astype(int)
        assert np.abs(mine - want).max() <= 1 and (mine == want).mean() > 0.99


def through_pillow(image, quality):
    out = io.BytesIO()
    Image.fromarray(image.squeeze()).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out)).reshape(image.shape).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 21])
def test_jpeg_is_libjpegs(images, channels, size):
    cut = images[:, :size, :size, :channels]
    for severity in (1, 5):
        quality = severities.CIFAR["jpeg_compression"][severity - 1]
        got = corrupt("jpeg_compression", cut, severity)
        want = np.stack([through_pillow(image, quality) for image in cut])
        assert np.abs(got - want).mean() < 0.6
        # Far less than what JPEG loses, beside a level now and then from integer cosines.
        assert mse(want, got) < mse(cut, want) / 30 + 0.2


def test_jpegs_tables():
    for quality in (80, 25, 7):
        out = io.BytesIO()
        Image.new("RGB", (16, 16)).save(out, "JPEG", quality=quality)
        want = Image.open(out).quantization
        got = digital.tables([quality])[0]
        for table in (0, 1):
            assert sorted(got[table].ravel()) == sorted(want[table])
