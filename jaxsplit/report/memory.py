"""The memory that a run needs, as text. `jaxsplit.memory` measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOW_TO_COMPILE = (
    "activations and other temporary arrays: add --compile (minutes for large networks)"
)


@dataclass(frozen=True)
class Bytes:
    """Of arrays of all networks together, and of their part on each device."""

    total: int
    device: int

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.total + other.total, self.device + other.device)


@dataclass(frozen=True)
class Program:
    """Bytes on each device of a compiled program, as XLA counts them.

    in_place: of results that take the place of arguments, and need no memory of their own.
    temporary: activations, gradients and other arrays that live inside the program only.
    """

    arguments: int
    results: int
    in_place: int
    temporary: int
    code: int

    @property
    def total(self) -> int:
        """What lies in memory at most while the program runs."""
        return self.arguments + self.results - self.in_place + self.temporary + self.code


def mebibytes(count: int) -> str:
    """1572864 -> '1.50 MiB'."""
    return f"{count / 2**20:,.2f} MiB"


def held(rows: Mapping[str, Bytes], net: int, notes: Sequence[str] = ()) -> str:
    """The table of what lies on the devices between the steps of a run.

    Args:
      rows: name -> bytes; their sum is the last line.
      net: number of groups of devices that divide the networks, config.mesh.net.
      notes: lines below the table.
    """
    each = f"each device, mesh.net={net}"
    lines = ["memory, between the steps", f"{'':22} {'all networks':>32} {each:>32}"]
    for name, of in {**rows, "together": sum(rows.values(), Bytes(0, 0))}.items():
        lines.append(f"{name:22} {_cell(of.total)} {_cell(of.device)}")
    return "\n".join([*lines, *notes])


def program(title: str, of: Program | None) -> str:
    """The table of a compiled program; None: XLA gives no figures on this platform."""
    if of is None:
        return f"{title}: XLA gives no figures on this platform"
    rows = {
        "arguments": of.arguments,
        "results": of.results,
        "of them in place": -of.in_place,
        "temporary": of.temporary,
        "code": of.code,
        "together": of.total,
    }
    kept = (f"{name:22} {_cell(count)}" for name, count in rows.items() if count)
    return "\n".join([f"{title}, on each device by XLA's count", *kept])


def _cell(count: int) -> str:
    return f"{count:>18,} {mebibytes(count):>13}"
