"""The results that two papers report, one per row; runs print them below their own results.

The papers are divide and co-training (arXiv 2011.14660) and FFSD (arXiv 2103.14473). The figures
are from their tables and lists of checkpoints; both papers chose the best epoch on the test set.
The experiments take epochs, batch size, crop and weight decay from here.
`jaxsplit published [DATASET ...]` prints the table.
"""

from dataclasses import dataclass
from statistics import mean

# Columns: method, arch, S (FFSD: number of students), epochs, batch size, crop in pixels, whether
# Eq. (6) divides the weight decay, millions of parameters and billions of multiply-adds of all
# networks, top-5 in %, top-1 in % (of the ensemble; FFSD: of the leader in each run), top-1 in % of
# each network. '-': not reported.
_TABLES = {
    "cifar100": """
single  resnet110             1  300 128  32 -    1.17  0.17     - 81.04
cotrain resnet110             2  300 128  32 -    1.33   0.2     - 81.68
cotrain resnet110             4  300 128  32 -    1.21  0.18     - 80.44
single  resnet164             1  300 128  32 -    1.73  0.25     - 81.62
cotrain resnet164             2  300 128  32 -    1.96  0.29     - 82.88
cotrain resnet164             4  300 128  32 -    1.78  0.26     - 81.95
single  se_resnet110          1  300 128  32 -    1.69  0.17     - 82.09
cotrain se_resnet110          2  300 128  32 -    1.89   0.2     - 82.63
cotrain se_resnet110          4  300 128  32 -     1.7  0.18     - 81.67
single  se_resnet164          1  300 128  32 -    2.51  0.26     - 82.63
cotrain se_resnet164          2  300 128  32 -    2.81  0.29     - 83.69
cotrain se_resnet164          4  300 128  32 -    2.53  0.27     - 82.79
single  efficientnetb0_cifar  1  300 128  32 -    4.13  0.23     - 81.50
cotrain efficientnetb0_cifar  2  300 128  32 -    4.28  0.24     - 81.80
cotrain efficientnetb0_cifar  4  300 128  32 -    4.52   0.3     - 82.15
single  efficientnetb3_cifar  1  300 128  32 -    10.9   0.6     - 81.90
cotrain efficientnetb3_cifar  2  300 128  32 -    11.1   0.6     - 83.00
cotrain efficientnetb3_cifar  4  300 128  32 -    11.7  0.65     - 83.38
single  wide_resnet16_8       1  300 128  32 -      11  1.55     - 81.31
cotrain wide_resnet16_8       2  300 128  32 -    12.4  1.75     - 82.63
cotrain wide_resnet16_8       4  300 128  32 -    11.1  1.58     - 82.93
single  resnext29_8x64d       1  300 128  32 -    34.5  5.41     - 83.57
cotrain resnext29_8x64d       2  300 128  32 -    35.4   5.5     - 85.01
cotrain resnext29_8x64d       4  300 128  32 -    36.9  5.67     - 85.12
single  wide_resnet28_10      1  300 128  32 -    36.5  5.25     - 84.50
cotrain wide_resnet28_10      2  300 128  32 -    35.8  5.16     - 85.52
cotrain wide_resnet28_10      4  300 128  32 -    36.7  5.28     - 85.74
single  wide_resnet40_10      1  300 128  32 -    55.9  8.08     - 84.44
cotrain wide_resnet40_10      2  300 128  32 -    54.8  7.94     - 85.72
cotrain wide_resnet40_10      4  300 128  32 -      56  8.12     - 86.04
single  densenet190           1 1800 128  32 -    25.8  9.39     - 85.90
cotrain densenet190           2 1800 128  32 -    25.5  9.24     - 87.36
cotrain densenet190           4 1800 128  32 -    26.3  9.48     - 87.44
single  pyramidnet272         1 1800 128  32 -    26.8  4.55     - 88.98
cotrain pyramidnet272         2 1800 128  32 -    28.9  5.24     - 89.25
cotrain pyramidnet272         4 1800 128  32 -    32.8  6.33     - 89.46
single  wide_resnet40_10      1 1800 128  32 -    55.9  8.08     - 83.98
cotrain wide_resnet40_10      2 1800 128  32 Eq6  54.8  7.94     - 85.91
cotrain wide_resnet40_10      4 1800 128  32 Eq6    56  8.12     - 86.90
ffsd    resnet20              2  300 128  32 -       -     -     - 72.64,72.58,72.88
ffsd    resnet32              2  300 128  32 -       -     -     - 74.92,74.82,74.82
ffsd    resnet56              2  300 128  32 -       -     -     - 75.84,75.66,75.91
ffsd    ffsd_wide_resnet16_2  2  300 128  32 -       -     -     - 75.87,75.86,75.69
ffsd    ffsd_wide_resnet40_2  2  300 128  32 -       -     -     - 79.13,79.19,79.11
ffsd    densenet40_12         2  300 128  32 -       -     -     - 77.29,77.70,77.17
ffsd    googlenet             2  300 128  32 -       -     -     - 81.52,81.93,81.34
""",
    "cifar10": """
single  se_resnet164          1  300 128  32 -    2.49  0.26     - 97.02
cotrain se_resnet164          2  300 128  32 Eq6  2.81  0.29     - 97.16
single  se_resnet164          1 1800 128  32 -    2.49  0.26     - 97.81
cotrain se_resnet164          2 1800 128  32 Eq6  2.81  0.29     - 97.80
single  resnext29_8x64d       1  300 128  32 -    34.4   5.4     - 97.31
cotrain resnext29_8x64d       2  300 128  32 Eq6  35.1  5.49     - 97.88
single  resnext29_8x64d       1 1800 128  32 -    34.4   5.4     - 97.77
cotrain resnext29_8x64d       2 1800 128  32 Eq6  35.1  5.49     - 98.06
single  wide_resnet28_10      1  300 128  32 -    36.5  5.25     - 97.72
cotrain wide_resnet28_10      2  300 128  32 Eq6  35.8  5.16     - 97.94
cotrain wide_resnet28_10      4  300 128  32 Eq6  36.5  5.28     - 97.99
single  wide_resnet28_10      1 1800 128  32 -    36.5  5.25     - 97.59
cotrain wide_resnet28_10      2 1800 128  32 Eq6  35.8  5.16     - 98.19
cotrain wide_resnet28_10      4 1800 128  32 Eq6  36.5  5.28     - 98.32
single  wide_resnet40_10      1  300 128  32 -    55.8  8.08     - 97.67
cotrain wide_resnet40_10      4  300 128  32 Eq6  55.9  8.12     - 97.99
single  wide_resnet40_10      1 1800 128  32 -    55.8  8.08     - 97.81
cotrain wide_resnet40_10      4 1800 128  32 Eq6  55.9  8.12     - 98.38
single  shake_resnet26_2x96d  1 1800 128  32 -    26.2  3.78     - 98.00
cotrain shake_resnet26_2x96d  2 1800 128  32 Eq6  23.3  3.38     - 98.25
cotrain shake_resnet26_2x96d  4 1800 128  32 Eq6  26.3  3.82     - 98.31
single  pyramidnet272         1 1800 128  32 -    26.2  4.55     - 98.67
cotrain pyramidnet272         4 1800 128  32 Eq6  32.6  6.33     - 98.71
""",
    "imagenet2012": """
single  resnet50              1  120 256 224 -    25.7   5.5 94.47 78.84
single  se_resnet50           1  120 256 224 -    28.2   4.9 94.54 79.47
single  resnexst50_4x16d      1  120 256 224 -    17.8   4.3 94.98 79.85
single  resnexst50_8x16d      1  120 256 224 -    30.5   6.8 95.36 80.90
single  resnexst50_4x32d      1  120 256 224 -    37.1   8.3 95.49 81.10
single  resnet101             1  120 256 224 -    44.8   9.2 94.54 80.16
single  wide_resnet50_2       1  120 256 224 -    68.9  12.8 95.16 80.66
single  wide_resnet50_3       1  120 256 224 -     135  23.8 95.40 80.74
single  resnext101_64x4d      1  120 256 224 -    83.6  16.9 95.73 81.57
single  efficientnetb7        1  120 256 320 -    66.7  10.6 95.78 81.83
cotrain wide_resnet50_2       2  120 256 224 Eq6  51.4  10.9 94.82 79.64 78.68,78.66
cotrain wide_resnet50_3       2  120 256 224 Eq6   138  25.6 95.62 81.42 80.32,80.24
cotrain resnext101_64x4d      2  120 256 224 -    88.6  18.8 95.98 82.13 81.09,81.02
cotrain efficientnetb7        2  120 256 320 -    68.2  10.5 96.30 82.74 81.39,81.83
cotrain efficientnetb7        4  120 256 320 -    70.9  12.6 96.22 82.75 80.49,80.55,80.56,80.48
cotrain se_resnext101_64x4d   2  120 128 416 -      98  61.1 96.61 83.34
cotrain se_resnext101_64x4d_B 2  350 128 320 -      98  38.2 96.69 83.60 82.43,82.46
ffsd    ffsd_resnet18         2   90 256 224 -       -     -     - 70.87
ffsd    ffsd_resnet34         2   90 256 224 -       -     -     - 74.69
""",
}


@dataclass(frozen=True)
class Result:
    """One published result; `arch` is the name of its architecture in jaxsplit."""

    dataset: str
    method: str
    arch: str
    split: int  # S; FFSD: number of students
    epochs: int
    batch_size: int
    crop: int  # pixels
    divide_weight_decay: bool  # whether Eq. (6) divides the weight decay
    params: float | None  # millions, of all networks
    macs: float | None  # billions of multiply-adds, of all networks
    top5: float | None  # percent
    top1: tuple[float, ...]  # percent, one per run
    networks_top1: tuple[float, ...]  # percent, one per network

    def __str__(self) -> str:
        runs = f", mean of {len(self.top1)} runs" if len(self.top1) > 1 else ""
        decay = ", weight decay by Eq. (6)" if self.divide_weight_decay else ""
        return (
            f"{mean(self.top1):.2f} % ({self.epochs} epochs, batch {self.batch_size}, "
            f"{self.crop} pixels{decay}{runs}; best epoch on the test set)"
        )


def _row(dataset: str, line: str) -> Result:
    def number(text: str) -> float | None:
        return None if text == "-" else float(text)

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(map(float, text.split(","))) if text else ()

    method, arch, *whole, eq6, params, macs, top5, top1, networks = [*line.split(), ""][:12]
    split, epochs, batch_size, crop = map(int, whole)
    return Result(
        dataset=dataset,
        method=method,
        arch=arch,
        split=split,
        epochs=epochs,
        batch_size=batch_size,
        crop=crop,
        divide_weight_decay=eq6 == "Eq6",
        params=number(params),
        macs=number(macs),
        top5=number(top5),
        top1=numbers(top1),
        networks_top1=numbers(networks),
    )


DATASETS = tuple(_TABLES)
RESULTS: tuple[Result, ...] = tuple(
    _row(dataset, line) for dataset, table in _TABLES.items() for line in table.split("\n") if line
)


def find(*, dataset: str, method: str, arch: str, split: int) -> list[Result]:
    """The results of one experiment, the shortest run first."""
    wanted = (dataset, method, arch, split)
    found = [r for r in RESULTS if (r.dataset, r.method, r.arch, r.split) == wanted]
    return sorted(found, key=lambda r: r.epochs)


def table(results: tuple[Result, ...] = RESULTS) -> str:
    """The results as an aligned Markdown table."""

    def text(value) -> str:
        if isinstance(value, bool):
            return "Eq. (6)" if value else ""
        if isinstance(value, tuple):
            return ", ".join(f"{v:.2f}" for v in value)
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    head = ("data", "method", "arch", "S", "epochs", "batch", "crop", "decay", "M parameters")
    head += ("G mult-adds", "top-5 %", "top-1 %", "each network's")
    lines = [head] + [tuple(map(text, vars(r).values())) for r in results]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * w for w in widths))
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
        for cells in lines
    )
