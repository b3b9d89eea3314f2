# SPDX-License-Identifier: Apache-2.0
"""The only file that prints. Data goes to stdout, everything else to stderr; a pipe gets plain text without
colour.

rich is imported only when a person looks at a terminal: piped output and --json do not pay for it. NO_COLOR
is honoured by rich; VELO_NO_PROGRESS and pipes switch progress off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..errors import VeloError

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes 6 ms
    from typing import Any, TextIO

    from rich.console import Console

SCHEMA = 1
MARKS = {"ok": "green", "warn": "yellow", "fail": "red"}
BAR_WIDTH = 44
# Control characters but for tab and newline: a file's name may hold them.
_STEERING = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def data(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout. Later versions only ever add fields."""
    _write(sys.stdout, document_text(document))


def document_text(document: Mapping[str, Any]) -> str:
    """The same object as text, for a file."""
    import json  # 8 ms that words do not need

    return json.dumps({"schema": SCHEMA, **document}, indent=2, default=str) + "\n"


def plain_object(document: Mapping[str, str]) -> None:
    """A JSON object that is a contract of its own, without a schema field."""
    import json

    _write(sys.stdout, json.dumps(document, indent=2) + "\n")


def line(text: str = "", stream: TextIO | None = None) -> None:
    """A line of data."""
    _write(stream or sys.stdout, text + "\n")


def lines(texts: Iterable[str], stream: TextIO | None = None) -> None:
    """Many of them."""
    _write(stream or sys.stdout, "".join(f"{text}\n" for text in texts))


def note(text: str) -> None:
    """A line for people, not for pipes."""
    _write(sys.stderr, text + "\n")


def flush() -> None:
    """Have all data arrive."""
    with _arriving(sys.stdout):
        sys.stdout.flush()


@contextmanager
def _arriving(stream: TextIO) -> Iterator[None]:
    """What cannot be written (a full disk) is said once, and not again by Python as it ends."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stderr:
            return  # Nobody is left to be told.
        reason = os.strerror(error.errno or 0).lower()
        raise VeloError(f"could not write the answer: {reason}", hint="send it to another place") from error


def failure(error: VeloError, as_json: bool) -> int:
    """Say what failed and what to do about it, on stderr; return the exit code."""
    if as_json:
        import json

        body = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        _write(sys.stderr, json.dumps({"schema": SCHEMA, "error": body}) + "\n")
    else:
        hint = f"hint: {error.hint}\n" if error.hint else ""
        _write(sys.stderr, f"error: {error.message}\n{hint}")
    return error.exit_code


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    stream: TextIO | None = None,
) -> None:
    """Aligned columns; `right` lists the columns that hold numbers."""
    if not rows:
        return
    stream = stream or sys.stdout
    if stream.isatty():
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, header in enumerate(headers):
            drawn.add_column(header, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(_printable(cell)) for cell in row))
        _console(stream).print(drawn)
    else:
        lines(aligned(headers, rows, right), stream)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """The plain form of a table: two spaces between columns, nothing at line ends."""
    widths = [max(len(row[index]) for row in [headers, *rows]) for index in range(len(headers))]
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def pairs(values: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Name and value, one per line, values aligned."""
    width = max((len(name) for name in values), default=0)
    lines((f"{name.ljust(width)}  {value}" for name, value in values.items()), stream)


def finding(mark: str, name: str, text: str, hint: str) -> None:
    """One line of `velo doctor`, and its hint below it."""
    if sys.stdout.isatty():
        from rich.text import Text

        shown = Text(f"{mark:<4}  ", style=MARKS[mark]).append(f"{name}: ", style="bold")
        _console(sys.stdout).print(shown.append(_printable(text), style="default"), soft_wrap=True)
    else:
        line(f"{mark:<4}  {name}: {text}")
    if hint:
        line(f"      hint: {hint}")


def bars(rows: Sequence[tuple[str, float, str]], unit: str) -> None:
    """A bar chart: label, value and the series it belongs to; the longest bar fills the width."""
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    width = max((len(label) for label, _, _ in rows), default=0)
    colours = {"plain": "bright_black", "velo": "green"}
    for label, value, series in rows:
        eighths = max(1, round(value / longest * BAR_WIDTH * 8))
        bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        text = f"{series:<5} {bar} {value:.0f} {unit}"
        if sys.stdout.isatty():
            from rich.text import Text

            _console(sys.stdout).print(
                Text(f"{label:<{width}}  ").append(text, style=colours.get(series, "default")), soft_wrap=True
            )
        else:
            line(f"{label:<{width}}  {text}")


@contextmanager
def progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress display on stderr; yields `show(phase, done, total)`. Silent unless a person is watching."""
    from ..config import env

    if not sys.stderr.isatty() or os.environ.get(env.NO_PROGRESS):
        yield lambda phase, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(sys.stderr), transient=True) as display:
        task = display.add_task(label, total=None)
        yield lambda phase, done, total: display.update(
            task, description=phase or label, completed=done, total=total or None
        )


def size(count: float) -> str:
    """Bytes for people: `1.2 MB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that says something."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _printable(text: str) -> str:
    """Names that are not UTF-8 must not end the display, and names that steer a terminal must not do so."""
    return text.translate(_STEERING).encode("utf-8", "backslashreplace").decode()


def _write(stream: TextIO, text: str) -> None:
    if stream.isatty():
        text = text.translate(_STEERING)
    with _arriving(stream):
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False)
