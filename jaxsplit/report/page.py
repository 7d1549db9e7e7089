"""The report of runs: one HTML page that needs no other file, no script and no network."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from jaxsplit.checkpoints import folder as checkpoints
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import predictions
from jaxsplit.evaluation.predictions import SplitPredictions
from jaxsplit.report import figures, html, latencies, results, runs, sections, shift, style
from jaxsplit.report.runs import Run

FILE = "report.html"
_IMAGES = 24  # on a page, of those that are answered wrong: they take most of its bytes


def write(
    workdirs: Sequence[pathlib.Path],
    out: pathlib.Path,
    evaluate: Callable[[Run], str],
    say: Callable[[str], None] = print,
) -> pathlib.Path:
    """Writes the report of some workdirs; the same workdirs give the same bytes.

    Args:
      workdirs: as of `runs.paths`.
      out: the file; replaced where it exists.
      evaluate: evaluates a run that has no evaluation, or an old one, and writes its files; returns
        why one was not written, '' if all were.
      say: gets a line where a run is evaluated first.

    Raises:
      ConfigError: a folder is no workdir, a file cannot be read or written, or matplotlib is
        missing; what `evaluate` raises becomes a sentence of the page.
    """
    from jaxsplit.workdir import files

    figures.need_matplotlib()
    found, notes = [], []
    for run in runs.read(workdirs):
        if why := _missing(run):
            say(f"{run.path} {why}; evaluating it first")
            run, note = _evaluated(run, evaluate, why)
            notes.append(note)
        found.append(run)
    text = page(found, notes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(out, text)
    except OSError as error:
        raise ConfigError(f"out={str(out)!r}: cannot be written ({error})") from None
    return out


def _missing(run: Run) -> str:
    """Why a run is to be evaluated first; '': it is not, or cannot be."""
    steps = checkpoints.steps_in(run.path / checkpoints.FOLDER)
    if not steps:
        return ""
    if not run.evaluation or not (run.path / predictions.FILE).exists():
        return "had no evaluation"
    newest = max(steps)
    if run.evaluation.get("checkpoint") == "latest" and run.evaluation.get("step") != newest:
        return f"had an evaluation of step {run.evaluation.get('step')}, not of step {newest}"
    return ""


def _evaluated(run: Run, evaluate: Callable[[Run], str], why: str) -> tuple[Run, str]:
    """(the run with what its evaluation wrote, a sentence on it)."""
    refused = unwritten = ""
    try:
        unwritten = evaluate(run)
    except ConfigError as error:
        refused = str(error)
    (again,) = runs.read([run.path])
    again = runs.renamed(again, run.name)
    if refused:
        note = f"{run.name} {why}, and cannot be evaluated: {refused}"
    elif unwritten or _missing(again) == why:
        reason = unwritten or "its files are not there"
        note = f"{run.name} {why}, and its evaluation was not written: {reason}"
    else:
        note = f"{run.name} {why}; it was evaluated for this report."
    return again, note


def page(found: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """The HTML of the report."""
    groups = runs.alike(found)
    kept = {run.name: its for run in found if (its := predictions_of(run))}
    most = max(2, min(8, _IMAGES // len(found)))
    shown = [
        sections.results_table(groups),
        sections.training(found),
        sections.calibration(found),
        sections.errors(found, kept),
        sections.diversity(found),
        sections.cost(found, kept),
        latencies.section(found),
        sections.wrong(found, kept, most),
        shift.section(found),
        sections.configs(found),
        sections.versions(found),
    ]
    title = f"Report of {', '.join(run.name for run in found)}"
    body = html.join([_head(title, groups, notes), contents(shown), *shown])
    return html.page(title, style.CSS, html.tag("main", body))


def predictions_of(run: Run) -> Mapping[str, SplitPredictions]:
    """Split -> what predictions.npz holds; {}: it is not of the evaluation that eval.json holds."""
    path = run.path / predictions.FILE
    if not run.evaluation or not path.exists():
        return {}
    found = predictions.read(path)
    test = found.splits.get("test")
    return found.splits if found.step == run.step and test and run.answer in test.logits else {}


def _head(title: str, groups: Sequence[Sequence[Run]], notes: Sequence[str]) -> html.Raw:
    parts = [html.tag("h1", title)]
    for group in groups:
        what = html.tag("strong", results.experiment(group[0]))
        length = f" ({group[0].config.duration}). "
        parts.append(html.paragraph(html.join([what, length, results.headline(group)], ""), "lead"))
    if ahead := results.comparison(groups):
        parts.append(html.paragraph(ahead, "lead"))
    logged = [run.name for group in groups for run in group if not run.evaluation and run.answers]
    lines = list(notes)
    if logged:
        lines.append(f"{', '.join(logged)}: scores are the last of metrics.jsonl.")
    parts.append(html.bullets(lines))
    return html.tag("header", html.join(parts))


def contents(shown: Sequence[html.Raw]) -> html.Raw:
    """Links to the sections."""
    import re

    heads = [re.match(r'<section id="(\w+)">\n?<h2>(.*?)</h2>', part) for part in shown]
    links = [html.Raw(f'<a href="#{head[1]}">{head[2]}</a>') for head in heads if head]
    return html.tag("nav", html.bullets(links), aria_label="Contents")
