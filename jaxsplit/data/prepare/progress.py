"""How far the preparation of a split is."""

import sys
import time
from collections.abc import Iterable, Iterator

LINE_EVERY_S = 10.0


class Progress:
    """Shows how far a split is: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, split: str, total: int | None, done: int):
        self.split, self.total, self.done = split, total, done

    def of(self, records: Iterable) -> Iterable:
        """Yields `records` and counts them."""
        if not sys.stderr.isatty():
            return self._with_lines(records)
        from tqdm import tqdm

        return tqdm(records, desc=self.split, total=self.total, initial=self.done, unit=" images")

    def _with_lines(self, records: Iterable) -> Iterator:
        began = last = time.monotonic()
        done = self.done
        for record in records:
            yield record
            done += 1
            now = time.monotonic()
            if now - last >= LINE_EVERY_S:
                last = now
                of = f" of {self.total:,}" if self.total else ""
                rate = (done - self.done) / (now - began)
                print(f"{self.split}: {done:,}{of} images, {rate:,.0f}/s", flush=True)
