"""What evaluations find, by name and metric, and its flat form where it is written."""

from collections.abc import Iterable, Mapping

NETWORKS = "all"  # the name of metrics of all networks together
EXAMPLES = "examples"  # the name of numbers of examples: count, bad_records

SplitResults = dict[str, dict[str, float]]
"""Of one split, name -> metric -> mean: 'net0' ..., 'ensemble', 'leader', NETWORKS, EXAMPLES."""

Results = dict[str, SplitResults]
"""By the name of the split: 'validation', 'test', or 'train', a sample of the training set."""


def answers(names: Iterable[str]) -> list[str]:
    """The names of answers: single networks by number, then what they answer together."""
    found = [name for name in names if name not in (NETWORKS, EXAMPLES)]
    # A jitted function sorts the names.
    networks = sorted((n for n in found if n.startswith("net")), key=lambda n: int(n[3:]))
    return networks + [n for n in found if n not in networks]


def flatten(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The flat form that is written and returned to users.

    `results['test']['net0']['top1']` becomes 'test/net0/top1'; metrics of NETWORKS and EXAMPLES
    have no name in between: 'test/oracle', 'test/count'.
    """
    return {
        f"{split}/{metric}" if name in (NETWORKS, EXAMPLES) else f"{split}/{name}/{metric}": value
        for split, names in results.items()
        for name, values in names.items()
        for metric, value in values.items()
    }
