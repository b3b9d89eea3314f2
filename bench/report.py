# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md out of results: goals and losses first, then a table for every kind of benchmark.

Called by `python -m bench.chart`. Prints what is in the records and decides nothing; goals are goals.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.disk import part_rows
from bench.disk import rows as disk_rows
from bench.figures import times
from bench.goals import verdicts
from bench.maintenance import HEAD, rows

TITLES = {
    "warm": "warm, with .pyc",
    "nopyc": "no .pyc",
    "cold": "cold page cache",
    "slowfs-0.3ms": "slow file system, 0.3 ms",
    "slowfs-1ms": "slow file system, 1 ms",
    "path50": "50 extra sys.path folders",
}


def document(records: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        "# Benchmarks\n",
        "Made by `python -m bench.chart` from `bench/results/`; how: [bench/README.md](../bench/README.md)."
        " Cells are different questions and are never averaged together.\n",
        "![How many times faster each program starts](benchmarks.svg)\n",
        *_goals(records),
        *_all_losses(records),
    ]
    for record in records:
        title, writer = _WRITERS[record["kind"]]
        parts += [*heading(title, record), *writer(record)]
    return "\n".join(parts)


def _goals(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Goals\n"
    words = {True: "yes", False: "**no**", None: "not measured"}
    yield from table(
        ("goal", "measured", "reached"),
        [(v.goal, v.measured, words[v.reached]) for v in verdicts(records)],
        "lrl",
    )


def _all_losses(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Losses\n"
    rows = [
        (
            f"Python {record['python']}",
            name,
            arm,
            program,
            times(cell["programs"][program]["ratios"][arm]["ratio"]),
        )
        for record in records
        if record["kind"] == "startup"
        for name, cell in record["cells"].items()
        for arm, programs in cell.get("losses", {}).items()
        if arm not in ("floor", "spared")
        for program in programs
    ]
    rows += [
        (
            f"Node {node}",
            record["cell"],
            arm,
            program,
            times(found["programs"][program]["ratios"][arm]["ratio"]),
        )
        for record in records
        if record["kind"] == "node"
        for node, found in record["nodes"].items()
        for arm, programs in found.get("losses", {}).items()
        for program in programs
    ]
    if rows:
        yield "Every program, cell and arm that was slower than plain Python or Node:\n"
        yield from table(("interpreter", "cell", "arm", "program", "plain / arm"), rows, "llllr")
    else:
        yield "None: no program was slower than plain Python or Node in any cell.\n"


def heading(title: str, record: Mapping[str, Any]) -> Iterator[str]:
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["machine"].items())
    language = f", Python {record['python']}" if record.get("python") else ""
    yield f"## {title}{language}\n"
    yield f"- command: `{record['command']}`"
    yield f"- date: {record['date']}; {record.get('velo', 'velo absent')}"
    yield f"- machine: {machine}"
    yield f"- the machine was busy: {record['busy']}\n" if record.get("busy") else "- the machine was quiet\n"


def _coldread(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{record['conditions'][0].upper()}{record['conditions'][1:]}."
    yield (
        "Waiting for the disk in milliseconds (how often); pages of 4 KiB read, by kind of file. `velo` reads"
        " ahead as soon as the hook is there, `run` before the interpreter is, `unaided` not at all. Waits"
        " are longer on a busy machine; their number, and that of pages, do not vary.\n"
    )
    for program, arms in record["programs"].items():
        kinds = sorted({kind for found in arms.values() for kind in found["kinds"]})
        rows = [
            [f"{program}: {kind}", *(_waited(found["kinds"].get(kind)) for found in arms.values())]
            for kind in kinds
        ]
        rows.append([f"**{program}**", *(f"**{found['wait_ms']:.1f}**" for found in arms.values())])
        yield from table(["files", *arms], rows, "l" + "r" * len(arms))
        yield ""
    program, arms = next(iter(record["programs"].items()))
    for arm in ("plain", "unaided"):
        yield f"\nAll that {program} reads in arm `{arm}`, in order; neighbours of a kind are one row.\n"
        groups: list[list[Any]] = []
        for each in arms[arm]["files"]:
            if (
                not groups
                or groups[-1][0]["kind"] != each["kind"]
                or each["kind"] not in (".pyc", "libraries")
            ):
                groups.append([])
            groups[-1].append(each)
        rows = [
            [
                f"{group[0]['at_ms']:.0f}",
                group[0]["file"] if len(group) == 1 else f"{len(group)} x {group[0]['kind']}",
                *(f"{sum(each[name] for each in group):g}" for name in ("pages", "waits")),
                f"{(ms := sum(each['wait_ms'] for each in group)):.2f}",
                f"{100 * ms / (arms[arm]['wait_ms'] or 1):.0f} %",
            ]
            for group in groups
        ]
        yield from table(("from ms", "file", "pages", "waits", "ms", "share"), rows, "rlrrrr")


def _waited(total: Mapping[str, Any] | None) -> str:
    return f"{total['wait_ms']:.1f} ({total['waits']}); {total['pages']}" if total else ""


def _startup(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"Statistic: {record['statistic']}. Brackets: p10 to p90; for ratios the 90 % interval.\n"
    for name, cell in record["cells"].items():
        yield f"### {TITLES.get(name, name)} (`{name}`)\n"
        if reason := cell.get("skipped"):
            yield f"Skipped: {reason}.\n"
            continue
        yield f"{cell['conditions'][0].upper()}{cell['conditions'][1:]}.\n"
        arms = list(cell["geometric_mean"])
        head = ["program", "plain ms", *(f"{arm} ms" for arm in arms), *(f"plain / {arm}" for arm in arms)]
        rows = [_program_row(program, found, arms) for program, found in cell["programs"].items()]
        means = [f"**{times(cell['geometric_mean'][arm])}**" for arm in arms]
        rows.append(["geometric mean", "", *("" for _ in arms), *means])
        yield from table(head, rows, "l" + "r" * (len(head) - 1))
        yield from _counts(cell)
        busy = [
            p for p, found in cell["programs"].items() if found["checks"].get("learned_during_timed_runs")
        ]
        if busy:
            yield f"Something was still learned during the timed runs of: {', '.join(busy)}.\n"


def _program_row(program: str, found: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    milliseconds = [span_of(found["arms"][arm], 1e3, 1) for arm in ("plain", *arms)]
    ratios = []
    for arm in arms:
        ratio = found["ratios"][arm]
        text = f"{times(ratio['ratio'])} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        ratios.append(f"**{text} slower**" if ratio["ratio"] < 1 else text)
    return [program, *milliseconds, *ratios]


def _counts(cell: Mapping[str, Any]) -> Iterator[str]:
    """Counts, not times: requests of the slow file system, and what stayed in a cache to be empty."""
    kinds = ("getattr", "open", "read", "opendir", "readdir", "readlink")
    programs = cell["programs"]
    first = next(iter(programs.values()))["arms"]
    if "getattr" in first["plain"]["medians"]:
        rows = [
            [name, *(f"{sum(found['arms'][arm]['medians'][k] for k in kinds):.0f}" for arm in first)]
            for name, found in programs.items()
        ]
        yield "Requests that reached the file system (median):\n"
        yield from table(["program", *first], rows, "l" + "r" * len(first))
    if "resident_pages" in first["plain"]["medians"]:
        medians = [arm["medians"] for found in programs.values() for arm in found["arms"].values()]
        worst = max(m["resident_pages"] / m["pages"] for m in medians)
        files = medians[0]["evicted_files"]
        yield f"Pages still in memory after dropping {files:.0f} files: at most {worst:.2%}.\n"


def _profile(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Millions of instructions in user space, counted by callgrind, of one warm start. Shares are of plain"
        " Python and overlap (the collector also runs while classes are made); *start and exit* is an empty"
        " program. *Floor* is a finder and loader that look into one dict, read one file and check nothing:"
        " what it saves is all that finding and reading can save; the rest is CPython at work.\n"
    )
    programs = record["instructions"]
    parts = [name for name in next(iter(programs.values()))["plain"] if name != "total"]
    empty = programs["(empty)"]["plain"]["total"]
    rows = []
    for name, arms in programs.items():
        total = arms["plain"]["total"]
        shares = [f"{arms['plain'][part] / total:.1%}" for part in parts]
        others = [
            f"{arms[arm]['total'] / 1e6:.1f} ({total / arms[arm]['total']:.3f}x)"
            for arm in arms
            if arm != "plain"
        ]
        rows.append([name, f"{total / 1e6:.1f}", *others, *shares, f"{empty / total:.1%}"])
    arms = [arm for arm in next(iter(programs.values())) if arm != "plain"]
    head = ["program", "plain", *(f"{arm} (plain / {arm})" for arm in arms), *parts, "start and exit"]
    yield from table(head, rows, "l" + "r" * (len(head) - 1))


def _hook(record: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for title, name in (
        ("install, as the hook reports it", "install_us"),
        ("opening the manifest", "manifest_open_us"),
    ):
        found = record[name]
        rows.append((title, found.get("skipped") or span_of(found.get("first", found), 1, 0) + " us"))
    rows.append(
        (
            "`python -c pass`, difference of processes",
            f"{record['process_difference_us']['difference']:.0f} us",
        )
    )
    calls = record["system_calls"]
    rows.append(("file-related system calls added", calls.get("skipped") or str(calls["difference"])))
    yield from table(("hook", "lower quartile (p10-p90)"), rows, "lr")
    if calls.get("by_name"):
        yield "By name: " + ", ".join(f"{name} {count:+}" for name, count in calls["by_name"].items()) + ".\n"
    memory = [
        (program, f"{found['plain'] / 1024:.1f}", f"{found['velo'] / 1024:.1f}", f"{found['ratio']:.3f}x")
        for program, found in record["peak_memory"].items()
    ]
    if memory:
        yield from table(("peak memory", "plain MiB", "velo MiB", "velo / plain"), memory, "lrrr")


def _ingest(record: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for kind, found in record.get("ingest", {}).items():
        label = {"pyc": "with .pyc", "bare": "without .pyc (all compiled)"}[kind]
        for name, seconds in found["seconds"].items():
            rate = found["files_per_second"][name]
            rows.append((f"ingest {label}, {name}", f"{seconds:.2f} s", f"{rate:,} files/s"))
    if found := record.get("compileall"):
        rows.append((f"compileall -j 0, {found['modules']:,} modules", f"{found['seconds']:.2f} s", ""))
    for kind, found in record.get("learn", {}).items():
        modules = f"{found['modules_served_next_time']} modules"
        label = {"pyc": "with .pyc", "bare": "without .pyc"}[kind]
        rows.append((f"learning {found['program']} {label}, CPU", f"{found['cpu_seconds']:.2f} s", modules))
    if rows:
        yield from table(("what", "figure", ""), rows, "lrr")
    if found := record.get("disk"):
        yield (
            f"{found['environments']} environments, each without one of the ten packages: allocated bytes of"
            " every file, link and folder, an inode with several names counted once. *Hard links* and *copy*"
            " are uv's, *compiled* with `--compile-bytecode`. The store holds bytecode (that of the standard"
            " library too) unless it says *content only*, and lies beside the environments.\n"
        )
        yield from table(("disk", "figure", ""), list(disk_rows(found)), "lrr")
        head = ("the store", "files", "blobs", "content", "stored", "on disk")
        yield from table(head, list(part_rows(found)), "lrrrrr")
        causes = {name: size for name, size in found["overhead"].items() if not name.startswith("of_")}
        total = sum(causes.values()) / found["blobs"]["blobs"]
        named = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in causes.items())
        yield f"Overhead of blobs in MB: {named}; {total:.0f} bytes for each blob.\n"


def _store(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{record['blobs']:,} blobs of {record['size']:,} bytes, page cache warm, for each blob."
        " `velo` has flushed what it stored, and hashes what it reads but for *mapped*; `files` and"
        " `diskcache` do neither. `files flushed` are 1,000: each of them waits for the disk.\n"
    )
    rows = [(name, span_of(found, 1, 2) + " us") for name, found in record["microseconds"].items()]
    in_c = record["nanoseconds_in_c"]
    rows.append(("find in the index, from C", in_c.get("skipped") or span_of(in_c, 1, 1) + " ns"))
    yield from table(("arm", "lower quartile (p10-p90)"), rows, "lr")


def _maintenance(record: Mapping[str, Any]) -> Iterator[str]:
    yield from table(HEAD, list(rows(record)), "lrrr")


def _machinery(record: Mapping[str, Any]) -> Iterator[str]:
    """What the import system costs."""
    yield (
        f"{record['modules']:,} empty modules, microseconds of the processor for each. *Floor* has its specs"
        " and its code ready before the clock starts: what it takes are importlib's own locks and frames."
        " Instructions are those of the whole process, its end and the floor's preparations included.\n"
    )
    yield "| arm | us a module (p10-p90) | times faster | instructions a module |"
    yield "|---|---:|---:|---:|"
    for name, found in record["us"].items():
        span = f"{found['lower_quartile']:.1f} ({found['p10']:.1f}-{found['p90']:.1f})"
        counted = record.get("instructions", {}).get(name, "")
        yield f"| {name} | {span} | {found['ratio']['ratio']:.2f}x | {counted} |"
    yield ""


def _metadata(record: Mapping[str, Any]) -> Iterator[str]:
    """What asking what is installed costs."""
    yield (
        f"{record['distributions']} distributions; microseconds of the processor for one question, asked"
        " once by a fresh process through `importlib.metadata`, opening the table and asking the kernel about"
        " every file behind the answer included. Then milliseconds of the processor for whole starts of"
        " programs that look for plugins; *without* is Velo that leaves `importlib.metadata` alone.\n"
    )
    cells = []
    for kind, unit in (("us", "us"), ("starts_ms", "ms")):
        for question, arms in record.get(kind, {}).items():
            for arm, found in arms.items():
                faster = f"{found['ratio']['ratio']:.2f}x"
                cells.append([f"`{question}`", arm, f"{span_of(found, 1, 1)} {unit}", faster])
    yield from table(("question or start", "arm", "lower quartile (p10-p90)", "times faster"), cells, "llrr")


def _unmarshal(record: Mapping[str, Any]) -> Iterator[str]:
    """Ways to get the code objects of a start."""
    yield (
        "Milliseconds that a process takes to make all code objects of one start, and how many times as fast"
        " that is as unmarshalling each module, which Python does. *Stream*: all modules as one stream, which"
        " shares names and constants, but has to be read whole before the first of them may run. *Images*:"
        " what Velo does, mapping them and touching their pages included.\n"
    )
    cells = []
    for program, found in record["programs"].items():
        took = found["milliseconds"]
        ways = [f"{value:.1f} ({times(took['each'] / value)})" for value in took.values()]
        cells.append([program, str(found["modules"]), str(found["images"]), *ways])
    ways = list(next(iter(record["programs"].values()))["milliseconds"])
    yield from table(("program", "modules", "with images", *ways), cells, "l" + "r" * (2 + len(ways)))


def _node(record: Mapping[str, Any]) -> Iterator[str]:
    """One table for each Node; rivals that change a program are named."""
    yield f"Cell: {record['cell']}. {record['statistic']}."
    yield "Brackets: p10 to p90; for ratios the 90 % interval.\n"
    for version, found in record["nodes"].items():
        yield f"### Node {version}, {record['cell']}\n"
        arms = list(found["geometric_mean"])
        rows = []
        for program, each in found["programs"].items():
            row = [program, span_of(each["arms"]["plain"], 1e3, 1)]
            for arm in arms:
                if ratio := each["ratios"].get(arm):
                    text = f"{times(ratio['ratio'])} ({ratio['low']:.2f}-{ratio['high']:.2f})"
                    row.append(f"**{text} slower**" if ratio["ratio"] < 1 else text)
                else:
                    row.append("changes the program")
            rows.append(row)
        rows.append(["geometric mean", "", *(f"**{times(found['geometric_mean'][arm])}**" for arm in arms)])
        yield from table(
            ("program", "plain ms", *(f"plain / {arm}" for arm in arms)), rows, "lr" + "r" * len(arms)
        )


def span_of(found: Mapping[str, float], factor: float, digits: int) -> str:
    values = [f"{found[name] * factor:.{digits}f}" for name in ("lower_quartile", "p10", "p90")]
    return f"{values[0]} ({values[1]}-{values[2]})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---:" if side == "r" else "---" for side in align) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


_WRITERS = {
    "startup": ("Start-up", _startup),
    "coldread": ("What a cold start reads", _coldread),
    "profile": ("Where a warm start goes", _profile),
    "unmarshal": ("Ways to get code objects", _unmarshal),
    "machinery": ("What the import system costs", _machinery),
    "metadata": ("What asking what is installed costs", _metadata),
    "hook": ("Hook", _hook),
    "node": ("Start-up of Node programs", _node),
    "ingest": ("Ingest, learning and disk", _ingest),
    "store": ("Store", _store),
    "gc": ("Garbage collection", _maintenance),
    "upkeep": ("Rebuild and verify", _maintenance),
}
KINDS = tuple(_WRITERS)  # In the order of the page.
