"""The two streams of a terminal that commands write to.

What is written comes from outside, too: names of files, messages, errors of servers. Here, and only
here, all of it is made harmless: no control characters, no markup.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

__all__ = [
    "err",
    "guard_streams",
    "out",
    "output_is_lost",
    "print_fields",
    "tell_lost_output",
    "visible",
]

OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1
    "\u2028\u2029"  # they end a line
    "\u202a-\u202e\u2066-\u2069"  # they turn the direction: what is shown is not what is there
    "\ud800-\udfff]"  # bytes that are not UTF-8
)
"""Characters that a terminal does not show, but obeys."""


def visible(text: str, *, keep: str = "") -> str:
    r"""Text that a terminal shows as it is: characters that it would obey become escapes such as
    ``\x1b``, but for those of ``keep``."""
    return OBEYED.sub(
        lambda f: f[0] if f[0] in keep else f[0].encode("unicode_escape").decode("ascii"), text
    )


class _Console(Console):
    """Shows text as it is: nothing in it is markup, or obeyed. Line ends are the caller's."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=visible(segment.text, keep="\n"))


out = _Console(markup=False, emoji=False, highlight=False)
err = _Console(stderr=True, markup=False, emoji=False, highlight=False)


def print_fields(*fields: str) -> None:
    """Print one line of fields with tabs between them, for other programs to read."""
    sys.stdout.write("\t".join(map(visible, fields)) + "\n")


class _Stream(io.TextIOWrapper):
    """A standard stream whose trouble ends no work: characters that its encoding lacks become
    escapes, and the first error of writing is kept for later. What comes after it is dropped."""

    lost: OSError | None = None
    told = False

    def write(self, text: str, /) -> int:
        if self.lost is None:
            try:
                super().write(text)
            except OSError as error:
                self.lost = error
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                super().flush()
            except OSError as error:
                self.lost = error


class _Log(logging.Handler):
    """Shows what a library warns of, where nobody has said what is to become of it."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(self.format(record), soft_wrap=True)


def guard_streams() -> None:
    """Make standard output and error such that printing never raises; see ``_Stream``.

    A stream that is closed is opened, so that no file gets its number and is printed into: output
    such that it cannot be written to, which is told at the end.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            mode = "r" if name == "stdin" else "w"
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
        if name != "stdin":
            kept = {n: getattr(stream, n) for n in ("encoding", "line_buffering", "write_through")}
            stream = _Stream(stream.detach(), errors="backslashreplace", **kept)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    logging.lastResort = _Log(logging.WARNING)


def output_is_lost() -> bool:
    """Whether standard output did not take all that was written to it."""
    sys.stdout.flush()
    return isinstance(sys.stdout, _Stream) and sys.stdout.lost is not None


def tell_lost_output(*, of_work: bool = False) -> bool:
    """Say on standard error, once, that output was lost: the result, or the report of work that is
    done all the same. Returns whether it was lost, and not told before."""
    stream = sys.stdout
    stream.flush()
    if not isinstance(stream, _Stream) or stream.lost is None or stream.told:
        return False
    stream.told, why = True, stream.lost.strerror
    if of_work:
        err.print(f"the report could not be printed ({why}); the work is not affected")
    elif stream.lost.errno != errno.EPIPE:  # who reads has enough, as head has
        err.print(f"error: the output could not be written: {why}")
    return True
