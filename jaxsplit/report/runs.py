"""What a report reads of workdirs: config, metrics, evaluation; nothing is computed or written."""

import dataclasses
import functools
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import metrics
from jaxsplit.config import history
from jaxsplit.costs import ALL, config_costs, own_costs
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import answers
from jaxsplit.evaluation.record import FILE as EVAL
from jaxsplit.evaluation.record import FORMAT
from jaxsplit.workdir import files

# Fields that change how a run is computed and stored, and not what it finds.
_STORAGE = (
    "lowering",
    "remat",
    "mesh",
    "eval.batch_size",
    "log_every",
    "checkpoint",
    "resume_with",
    "divide_anyway",
    *(f"data.{f}" for f in ("dir", "download", "resident", "resident_limit", "threads")),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir as a report shows it.

    name: what tells it from the other runs, the shortest end of its path.
    lines: of metrics.jsonl, in order; empty where there is none.
    evaluation: of eval.json; empty where there is none.
    dataset: of dataset.json; None: there is none.
    changes: of config.json: [{"step": int, "changed": {field: [before, after]}}].
    """

    path: pathlib.Path
    name: str
    config: ConfigDict
    lines: Sequence[Mapping[str, float]] = ()
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: facts.Facts | None = None
    changes: Sequence[Mapping[str, Any]] = ()
    written_by: str = ""

    @functools.cached_property
    def test(self) -> Mapping[str, Any]:
        """The scores of the test set in eval.json; without one, the last in metrics.jsonl."""
        return self.evaluation.get("splits", {}).get("test", {}) or _last_logged(self.lines)

    @property
    def step(self) -> int | None:
        """Of what `test` holds; None: it holds nothing."""
        if self.evaluation:
            return self.evaluation.get("step")
        return self.test.get("step")

    @property
    def answers(self) -> list[str]:
        """The names that were evaluated: single networks by number, then the common answers."""
        return answers(self.test.get("answers", {}))

    @property
    def networks(self) -> list[str]:
        return [name for name in self.answers if name.startswith("net")]

    @property
    def answer(self) -> str:
        """The method's answer, by which a run is judged."""
        wanted = config_lib.resolve(self.config).entry.answer
        return wanted if wanted in self.answers or not self.answers else self.answers[-1]

    @property
    def flat(self) -> dict[str, Any]:
        """Field -> value of the config."""
        return dict(config_lib.flat(self.config))

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Of dataset.json, else of eval.json; empty where neither has them."""
        names = self.dataset.class_names if self.dataset else ()
        names = names or self.evaluation.get("classes") or ()
        return [printable(str(name)) for name in names]

    def class_name(self, label: int) -> str:
        """A class by its name, else its number; 'none' of -1, which logits of NaN answer."""
        if label < 0:
            return "none"
        return self.class_names[label] if label < len(self.class_names) else str(label)

    @functools.cached_property
    def costs(self) -> dict[str, tuple[int, int]]:
        """Answer -> (parameters, multiply-adds of an image), and 'undivided'; {}: not known.

        An answer that is not named costs as much as `costs.ALL`.
        """
        try:
            num_classes, image_shape = _data_facts(self)
            resolved = config_lib.resolve(self.config)
            facts = dict(num_classes=num_classes, image_shape=image_shape)
            one, whole = config_costs(self.config, resolved, **facts)
            own = own_costs(self.config, resolved, one, **facts)
        except ConfigError:
            return {}
        singles = {f"net{i}": (one.params, one.macs) for i in range(self.config.split)}
        other = resolved.divided_in > 1 or resolved.heads > 1
        undivided = {"undivided": (whole.params, whole.macs)} if other else {}
        return {**singles, **own, **undivided}

    def cost(self, answer: str) -> tuple[int, int] | None:
        """(parameters, multiply-adds) of an answer; None: not known."""
        return self.costs.get(answer, self.costs.get(ALL))

    @property
    def images_per_second(self) -> float | None:
        """Of training: the median over the log points but the first, which is often slow."""
        speeds = [x["images_per_second"] for x in self.lines if "images_per_second" in x]
        return statistics.median(speeds[1:] or speeds) if speeds else None


def _last_logged(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The last evaluation of the test set in metrics.jsonl, in the form of eval.json."""
    rows = [x for x in lines if any(key.startswith("test/") for key in x)]
    if not rows:
        return {}
    found: dict[str, Any] = {"answers": {}, "networks": {}, "step": rows[-1]["step"]}
    for key, value in rows[-1].items():
        match key.split("/"):
            case ["test", "count"]:
                found["count"] = value
            case ["test", metric]:
                found["networks"][metric] = value
            case ["test", name, metric]:
                found["answers"].setdefault(name, {})[metric] = value
    return found


def _data_facts(run: Run) -> tuple[int, tuple[int, int, int]]:
    """(K, (H, W, C)) as the workdir says it, else as the data set does."""
    found = run.dataset or facts.of_config(run.config.data)
    return found.num_classes, found.image_shape


def paths(text: str) -> list[pathlib.Path]:
    """The workdirs that --workdir=A,B names; a comma may also be part of one's name.

    Raises:
      ConfigError: none is given, or one twice.
    """
    parts = [part for part in text.split(",") if part]
    if len(parts) > 1 and (files.path_of(text) / config_lib.CONFIG_FILE).exists():
        parts = [text]
    if not parts:
        raise ConfigError("workdir: must be given: --workdir=A or --workdir=A,B")
    found = [files.path_of(part) for part in parts]
    for i, path in enumerate(found):
        if _real(path) in map(_real, found[:i]):
            raise ConfigError(f"workdir={parts[i]!r}: is given twice")
    return found


def read(workdirs: Sequence[pathlib.Path]) -> list[Run]:
    """The runs of some workdirs, with names that tell them apart.

    Raises:
      ConfigError: a folder is no workdir, or a file in it cannot be read.
    """
    return [_read(path, name) for path, name in zip(workdirs, names(workdirs), strict=True)]


def renamed(run: Run, name: str) -> Run:
    """The run by another name."""
    return dataclasses.replace(run, name=name)


def _read(path: pathlib.Path, name: str) -> Run:
    config = config_lib.load(path)
    raw = json.loads((path / config_lib.CONFIG_FILE).read_text())
    return Run(
        path=path,
        name=printable(name),
        config=config,
        lines=list(_lines(path / metrics.JSONL)),
        evaluation=_json(path / EVAL),
        dataset=facts.read(path),
        changes=raw.get(history.KEY) or (),
        written_by=printable(str(raw.get("written_by", ""))),
    )


def _json(path: pathlib.Path) -> dict[str, Any]:
    """The dict that a file holds; {}: there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); `jaxsplit eval` writes it") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object of JSON")
    if found.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: format={found.get('format')!r}: must be {FORMAT}; `jaxsplit eval` writes it "
            "anew"
        )
    return found


def _lines(path: pathlib.Path) -> Iterator[dict[str, float]]:
    """The lines of metrics.jsonl that are whole; a run that was killed may leave a broken one."""
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield {k: v for k, v in values.items() if isinstance(v, int | float)}


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths, of equally many parts, that differ."""
    parts = [[part for part in os.fspath(path).split("/") if part] or ["/"] for path in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [os.fspath(path) for path in workdirs]


def _real(path: pathlib.Path) -> str:
    return os.fspath(path) if files.is_remote(path) else os.path.realpath(path)


def printable(text: str) -> str:
    """Text without control characters, which no page can hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ---- Several runs


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups whose experiments differ in the seed only, in the order of the first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fields = {k: v for k, v in run.flat.items() if k != "seed" and not _stores(k)}
        same = (sorted(fields.items()), run.step, run.answers)
        groups.setdefault(repr(same), []).append(run)
    return list(groups.values())


def differing(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of fields that are not the same in all of some flat configs."""
    every = dict.fromkeys(name for one in fields for name in one)
    first = fields[0]
    return [n for n in every if any(one.get(n) != first.get(n) for one in fields[1:])]


def _stores(field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in _STORAGE)
