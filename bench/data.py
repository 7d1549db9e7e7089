"""Speed of streamed JPEGs: images and views per second from data sets that it writes.

python -m bench.data [--images 300] [--views 4] [--size 224] [--threads 1 2] [--out FILE.md]
                     [--sources tfds hf]

`tfds` is an array_record, `hf` the same JPEGs as a data set of Hugging Face; rounds alternate.

The JPEGs have 500x375 pixels at quality 90, with smooth colours, edges and noise, so they are about
as large as those of ImageNet. The training feed decodes each once and cuts S random-resized crops
from it. "Per core" figures are per second of processor time of this process, so other work on the
machine matters less; "wall" figures are per second of wall-clock time. The best round counts.

The goal is 400 images/s per core at S = 1: one decode and one crop. With S views a decode serves S
crops; views/s must not be lower than at S = 1.
"""

import argparse
import contextlib
import io
import itertools
import os
import pathlib
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from bench import made_by
from configs import common
from jaxsplit import data

HEIGHT, WIDTH, QUALITY = 375, 500, 90
NAMES = {"tfds": "photos", "hf": "hf:photos_hf"}
CLASSES = 10
FLOOR = 400  # images per second and core at S = 1; views at a larger S
ALTERNATIONS = 2
LIBRARIES = ("simplejpeg", "opencv-python-headless", "grain", "array_record", "numpy")


def photo(seed: int) -> np.ndarray:
    """uint8[375, 500, 3] with the statistics of a photograph: power falls with frequency.

    It is noise with an amplitude of 1 / frequency, with some sharp-edged shapes and a little noise
    in every pixel, so its JPEG is as large as that of a photo.
    """
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / WIDTH)
    spectrum = np.fft.rfft2(rng.normal(size=(3, HEIGHT, WIDTH)))
    image = np.fft.irfft2(spectrum * falloff, s=(HEIGHT, WIDTH)).transpose(1, 2, 0)
    image = 120 + 45 * (image - image.mean()) / image.std()
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    for _ in range(6):
        cy, cx, radius = rng.integers(HEIGHT), rng.integers(WIDTH), rng.integers(20, 90)
        image[np.hypot(y - cy, x - cx) < radius] += rng.normal(0, 40, 3)
    image += rng.normal(0, 3, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def photos(distinct: int) -> list[bytes]:
    """Different pictures as JPEG."""
    from PIL import Image

    jpegs = []
    for seed in range(distinct):
        buffer = io.BytesIO()
        Image.fromarray(photo(seed)).save(buffer, "JPEG", quality=QUALITY)
        jpegs.append(buffer.getvalue())
    return jpegs


def write_hugging_face(folder: pathlib.Path, images: int, distinct: int = 50) -> None:
    """Saves the pictures of `write` as a data set of Hugging Face."""
    import datasets

    jpegs = photos(min(distinct, images))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)}
    )

    def part(count: int) -> datasets.Dataset:
        numbers = range(count)
        columns = {
            "image": [{"bytes": jpegs[i % len(jpegs)], "path": None} for i in numbers],
            "label": [i % CLASSES for i in numbers],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    datasets.disable_progress_bars()
    made = datasets.DatasetDict(train=part(images), test=part(2))
    made.save_to_disk(folder / NAMES["hf"].removeprefix("hf:"))


def write(folder: pathlib.Path, images: int, distinct: int = 50) -> float:
    """Prepares the data set `photos` in a folder; returns the mean size of its JPEGs in bytes.

    Only `distinct` different pictures are made, and repeated; every record is decoded anyway.
    """
    import tensorflow_datasets as tfds

    jpegs = photos(min(distinct, images))

    class Prepare(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(images), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                jpeg = io.BytesIO(jpegs[i % len(jpegs)])
                yield i, {"image": jpeg, "label": i % CLASSES}

    Prepare.name = NAMES["tfds"]
    tfds.disable_progress_bar()
    builder = Prepare(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return float(np.mean([len(jpeg) for jpeg in jpegs]))


@dataclass(frozen=True)
class Speed:
    """Images per second of wall-clock time, and per second of processor time of all threads."""

    wall: float
    per_core: float


def measure(
    folder: pathlib.Path,
    *,
    views: int,
    size: int,
    threads: int,
    rounds: int = 3,
    batch: int = 20,
    source: str = "tfds",
) -> Speed:
    """The best of some rounds, each of which is an epoch of the pictures in the training feed.

    The rounds follow each other without a pause, so the batches that the threads prepare ahead at
    the end of a round balance those that were ready at its beginning.
    """
    config = common.get_config().data
    config.update(name=NAMES[source], dir=str(folder), image_size=size)
    dataset = data.load(config)
    feed = data.train_feed(dataset, batch_size=batch, num_views=views, seed=0, threads=threads)
    images = feed.steps_per_epoch * batch
    best = Speed(0.0, 0.0)
    with contextlib.closing(feed.batches(0)) as batches:
        next(batches)
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(feed.steps_per_epoch):
                next(batches)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best = Speed(max(best.wall, images / wall), max(best.per_core, images / cpu))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4], help="S")
    parser.add_argument("--size", type=int, default=224, help="of a crop, in pixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sources", choices=NAMES, nargs="+", default=["tfds"])
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file that gets the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        kib = write(path, args.images) / 1024
        if "hf" in args.sources:
            write_hugging_face(path, args.images)
        best: dict[tuple[str, int, int], Speed] = {}
        cases = itertools.product(args.views, args.threads, range(ALTERNATIONS), args.sources)
        for views, threads, _, source in cases:
            speed = measure(
                path,
                views=views,
                size=args.size,
                threads=threads,
                rounds=args.rounds,
                source=source,
            )
            before = best.get((source, views, threads), Speed(0.0, 0.0))
            best[source, views, threads] = Speed(
                max(before.wall, speed.wall), max(before.per_core, speed.per_core)
            )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    lines = [
        f"{args.images} JPEGs of {WIDTH}x{HEIGHT} ({kib:.0f} KiB each) -> random-resized crops of "
        f"{args.size}; {made_by(f'CPU {platform.machine()}', versions)}; best of "
        f"{ALTERNATIONS * args.rounds} rounds, load average {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores",
        "",
        f"Floor: {FLOOR} images/s per core at S = 1 (one decode, one crop); with S views, where "
        f"one decode serves S crops, {FLOOR} views/s per core.",
        "",
        "| source | S | threads | images/s, wall | images/s per core | views/s per core | floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for (source, views, threads), speed in best.items():
        made = views * speed.per_core
        lines.append(
            f"| {source} | {views} | {threads} | {speed.wall:.0f} | {speed.per_core:.0f} "
            f"| {made:.0f} | {'pass' if made >= FLOOR else 'FAIL'} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
