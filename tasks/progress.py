"""Progress on stderr: amount done, rate and time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to be told each amount done. Away from a terminal a line appears every ten seconds."""
    with tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=0.5,  # what is over at once needs no bar
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    ) as bar:

        def tell(amount: int) -> None:
            bar.update(amount)

        yield tell
