"""What a run prints while it trains: a progress bar, or plain lines."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping

import jax


@contextlib.contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[], object]]:
    """Gives what is called after each of `total` parts: a bar on a terminal, else ten lines.

    Only process 0 prints.
    """
    done = 0

    def line() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{done:,} of {total:,} {title}", flush=True)

    if jax.process_index() != 0:
        yield lambda: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=title, dynamic_ncols=True) as bar:
            yield functools.partial(bar.update, 1)
    else:
        yield line


class Progress:
    """Prints a progress bar on a terminal, and plain lines elsewhere.

    Args:
      total: number of steps of the run.
      start: number of steps that were done before.
      active: whether anything is printed.
      num_networks: S; the printed loss is the mean over the networks.
    """

    def __init__(self, *, total: int, start: int, active: bool = True, num_networks: int = 1):
        self._active, self._total, self._bar = active, total, None
        self._num_networks = num_networks
        if active and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def training(self, step: int, epoch: float, m: Mapping[str, float]) -> None:
        """Prints the metrics `m` of a log point at this step and epoch."""
        parts = [self._loss(m)]
        if "train/ensemble/top1" in m:
            parts.append(f"ensemble {m['train/ensemble/top1']:.2%}")
        if "train/leader/top1" in m:
            parts.append(f"leader {m['train/leader/top1']:.2%}")
        for key, value in m.items():  # loss weights that change during the run
            if key.startswith("train/") and key.endswith("/weight"):
                name = key.removeprefix("train/").replace("/", " ")
                parts.append(f"{name} {value:.3f}")
        parts += [f"lr {m['lr']:.4g}", f"{m['images_per_second']:,.0f} images/s"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts[:2]))
        else:
            self.line(f"step {step}/{self._total}, epoch {epoch:.2f}: {', '.join(parts)}")

    def _loss(self, m: Mapping[str, float]) -> str:
        """The loss per network, so that it does not grow with S."""
        if self._num_networks == 1:
            return f"loss {m['train/loss']:.4f}"
        if "train/leader/loss" in m:  # the loss includes a leader and further modules
            return f"loss {m['train/loss']:.4f} in all"
        return f"loss {m['train/loss'] / self._num_networks:.4f} a network"

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
