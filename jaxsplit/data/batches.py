"""What training and evaluation batches share: a process's rows; threads that work ahead."""

from collections.abc import Callable, Generator

import numpy as np

from jaxsplit.data.stream import Skipped
from jaxsplit.errors import ConfigError

# A batch that a thread has made, and a line for each bad record in it.
Made = tuple[dict[str, np.ndarray], list[str]]
Batches = Generator[dict[str, np.ndarray], None, None]


def local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of the global batch that this process gets.

    Raises:
      ConfigError: batch_size is not a positive multiple of process_count.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size={batch_size}: must be a positive multiple of {process_count}, the number "
            "of processes"
        )
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)


def check_threads(threads: int) -> None:
    """Raises ConfigError unless there is at least one thread."""
    if threads < 1:
        raise ConfigError(f"data.threads={threads}: must be at least 1")


def in_threads(
    make: Callable[[int], Made],
    skipped: Skipped | None,
    start: int,
    stop: int,
    threads: int,
) -> Batches:
    """Yields the batches of make(start), ..., make(stop - 1) in order; Grain's threads work ahead.

    `skipped` counts the bad records of a batch when the batch is taken. So the count does not
    depend on how far ahead the threads are.
    """
    import grain

    def attempt(k: int) -> Made | ConfigError:
        try:
            return make(k)
        except ConfigError as error:
            return error  # if it were raised here, Grain would add lines to its message

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    made = iter(grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(options))
    try:
        for result in made:
            if isinstance(result, ConfigError):
                raise result
            batch, bad = result
            if bad and skipped is not None:
                skipped.add(bad)
            yield batch
    finally:
        made.close()
