# SPDX-License-Identifier: Apache-2.0
"""VELO_TRACE: when each module was found, read, unmarshalled and run, who asked for it, and who served it.

Loaded only where the variable is set. Four names of importlib are replaced: three that are not on the stack
while a module runs, and one whose stand-in has the frame of the stock function, down to the line number. So
tracebacks and the depth of recursion stay as they are. `velo trace` reads what is written here (FORMAT.md,
section 11). The surprise: the clock stands still while this file does its own writing.
"""

import _frozen_importlib as bootstrap
import _frozen_importlib_external as external
import _imp
import marshal
import sys
from _thread import get_ident
from posix import (
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_NOFOLLOW,
    O_WRONLY,
    close,
    getpid,
    getppid,
    open,
    register_at_fork,
    write,
)
from time import perf_counter_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PLAIN = "plain:"  # Before the folder: Velo stays out of the way, and stock imports are traced.
FLAGS = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW
LONGEST_SILENCE = 100_000_000  # ns: a server that is started by an import may never come back from it
SHORTEST_WAIT = 50_000  # ns: shorter than this nobody waited for another thread
STOCK = "<frozen importlib._bootstrap>"
INTERNAL = frozenset((STOCK, "<frozen importlib._bootstrap_external>"))
# What importlib calls through the one function that is on the stack while a module runs.
CALLS: "dict[Any, str]" = {
    exec: "exec",
    compile: "compile",
    _imp.create_dynamic: "dlopen",
    _imp.exec_dynamic: "exec",
    _imp.create_builtin: "create",
    _imp.exec_builtin: "exec",
    _imp.get_frozen_object: "frozen",
}
BUILTIN: "Any" = type(len)
# Its stand-in: the same name, file, globals and line number of the call.
CALL = """def make(begin, end):
 def _call_with_frames_removed(f, *args, **kwds):
  span = begin(f, args)
  try:
   return f(*args, **kwds)
  finally:
   if span is not None: end(span, f)
 return _call_with_frames_removed
"""
LINES_BEFORE = 5
LOADERS = {
    "BuiltinImporter": "builtin",
    "FrozenImporter": "frozen",
    "SourceFileLoader": "python",
    "SourcelessFileLoader": "python",
    "ExtensionFileLoader": "python",
    "NamespaceLoader": "python",
    "_NamespaceLoader": "python",
}


class Span:
    """One import of one module, from the moment its lock was asked for. Times in ns; `nested` is the time of
    imports within this one.
    """

    __slots__ = (
        "at_code",
        "at_found",
        "at_lock",
        "at_unmarshal",
        "compile",
        "dlopen",
        "end",
        "error",
        "exec",
        "importer",
        "is_by_hand",
        "line",
        "name",
        "nested",
        "nested_call",
        "nested_code",
        "nested_found",
        "number",
        "outer",
        "parent",
        "said",
        "spec",
        "start",
        "unmarshal",
        "was_written",
    )

    def __init__(self, name: str, number: int, parent: int, start: int) -> None:
        self.name = name
        self.number = number
        self.parent = parent
        self.start = start
        self.end = self.at_lock = self.at_found = self.at_code = self.at_unmarshal = 0
        self.nested = self.nested_found = self.nested_code = self.nested_call = 0
        self.unmarshal = self.compile = self.dlopen = self.exec = 0
        self.spec: Any = None
        self.said: tuple[str, str] = ("", "")
        self.importer = ""
        self.line = 0
        self.outer = id(sys.exc_info()[1])  # what is being handled already did not happen in here
        self.error = ""
        self.is_by_hand = self.was_written = False


class Thread:
    """What one thread is importing, innermost last; `lost` is what writing took of its time."""

    __slots__ = ("lost", "stack")

    def __init__(self) -> None:
        self.stack: list[Span] = []
        self.lost = 0


class ModuleLock:
    """Stands for importlib's lock of one module: a span begins when it is asked for and ends with it."""

    __slots__ = ("lock", "name", "span", "tracer")

    def __init__(self, tracer: "Tracer", lock: "Any", name: str) -> None:
        self.tracer = tracer
        self.lock = lock
        self.name = name
        self.span: Span | None = None

    def acquire(self) -> "Any":
        """As the lock's own."""
        tracer = self.tracer
        try:
            self.span = tracer.enter(self.name)
        except Exception:  # Whatever goes wrong with us, the import goes on.
            pass
        try:
            answer = self.lock.acquire()
        except BaseException:
            span, self.span = self.span, None
            if span is not None:
                tracer.drop(span)
            raise
        if self.span is not None:
            self.span.at_lock = tracer.now()
        return answer

    def release(self) -> None:
        """As the lock's own."""
        span, self.span = self.span, None
        try:
            if span is not None:
                self.tracer.leave(span)
        except Exception:
            pass
        finally:
            self.lock.release()

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.lock, name)


class Marshal:
    """Stands for `marshal` within importlib: to ask for `loads` is to begin to unmarshal."""

    def __init__(self, tracer: "Tracer") -> None:
        self.tracer = tracer

    @property
    def loads(self) -> "Any":
        """The function itself."""
        self.tracer.begin_unmarshal()
        return marshal.loads

    def __getattr__(self, name: str) -> "Any":
        return getattr(marshal, name)


class Tracer:
    """Notes every import of this interpreter and writes the notes into a folder, one file a process."""

    def __init__(self, target: str, mode: str) -> None:
        self.is_plain = target.startswith(PLAIN)
        self.folder = target.removeprefix(PLAIN)
        self.mode = "plain" if self.is_plain else mode
        self.threads: dict[int, Thread] = {}
        self.pending: list[tuple[int, Span]] = []
        self.numbers = iter(range(1, 1 << 62))  # threads take from it at the same time
        self.began = self.written = perf_counter_ns()
        self.path = f"{self.folder}/{getpid()}-{self.began}.trace"
        self.before: tuple[str, ...] = tuple(name for name in sys.modules if type(name) is str)
        self.is_forked = self.has_head = False

    # -- clock ---------------------------------------------------------------------------------------

    def thread(self) -> Thread:
        """The running thread's imports."""
        me = get_ident()
        thread = self.threads.get(me)
        if thread is None:
            thread = self.threads[me] = Thread()
        return thread

    def now(self) -> int:
        """The time of this thread, without what was spent on writing."""
        return perf_counter_ns() - self.thread().lost

    def current(self) -> "Span | None":
        """The import that is being worked on, if its module does not run yet."""
        stack = self.thread().stack
        return stack[-1] if stack and not stack[-1].at_code else None

    # -- events --------------------------------------------------------------------------------------

    def enter(self, name: str) -> Span:
        """An import begins."""
        began = perf_counter_ns()
        thread = self.thread()
        stack = thread.stack
        parent = stack[-1].number if stack else 0
        span = Span(str.__str__(name), next(self.numbers), parent, began - thread.lost)
        try:
            raise LookupError  # sys._getframe would be seen by auditors
        except LookupError as error:
            frame: Any = error.__traceback__.tb_frame  # type: ignore[union-attr]
        while frame is not None:
            importer = dict.get(frame.f_globals, "__name__")
            if frame.f_code.co_filename not in INTERNAL and importer != "importlib":
                span.importer = importer if type(importer) is str else ""
                span.line = frame.f_lineno or 0
                break
            frame = frame.f_back
        stack.append(span)
        thread.lost += perf_counter_ns() - began
        return span

    def drop(self, span: Span) -> None:
        """As if the import had not begun."""
        stack = self.thread().stack
        if stack and stack[-1] is span:
            stack.pop()
        elif span in stack:  # greenlets change places in the middle of an import
            stack.remove(span)

    def leave(self, span: Span) -> None:
        """An import has ended, well or not."""
        began = perf_counter_ns()
        thread = self.thread()
        span.end = began - thread.lost
        try:
            self._left(span, thread)
        finally:
            thread.lost = perf_counter_ns() - span.end

    def _left(self, span: Span, thread: Thread) -> None:
        self.drop(span)
        error = sys.exc_info()[1]
        if error is not None and id(error) != span.outer:
            span.error = type(error).__name__
        elif not span.at_found and span.end - span.start < SHORTEST_WAIT:
            return  # It was there already.
        if span.at_code and not span.exec:
            span.exec = span.end - span.at_code - (span.nested - span.nested_code)
        if thread.stack:
            thread.stack[-1].nested += span.end - span.start
        self.pending.append((get_ident(), span))
        if not thread.stack or perf_counter_ns() - self.written > LONGEST_SILENCE:
            self.flush()

    def found(self, span: Span, at: int) -> None:
        """From here on the module is made."""
        if not span.at_found:
            span.at_found = at
            span.nested_found = span.nested

    def note_spec(self, spec: "Any") -> None:
        """The module of this spec is about to be made, after its finder gave it."""
        span = self.current()
        if span is not None and span.spec is None and getattr(spec, "name", None) == span.name:
            self.found(span, self.now())
            span.spec = spec

    def begin_unmarshal(self) -> None:
        """Code is about to be made from bytes."""
        span = self.current()
        if span is not None and span.at_found:
            span.at_unmarshal = self.now()
            span.nested_call = span.nested

    def end_unmarshal(self) -> None:
        """It has been made."""
        span = self.current()
        if span is not None and span.at_unmarshal:
            span.unmarshal += self.now() - span.at_unmarshal - (span.nested - span.nested_call)
            span.at_unmarshal = 0

    def begin_call(self, function: "Any", arguments: "tuple[Any, ...]") -> "Span | None":
        """Importlib calls a function through `_call_with_frames_removed`."""
        kind = CALLS.get(function) if type(function) is BUILTIN else None
        try:
            return None if kind is None else self._begun(kind, arguments)
        except Exception:
            return None

    def _begun(self, kind: str, arguments: "tuple[Any, ...]") -> "Span | None":
        self.end_unmarshal()
        span = self.current()
        if kind == "exec":
            table = arguments[1] if len(arguments) > 1 else vars(arguments[0])
            # A native module may call itself by another name.
            name = table.get("__name__") if len(arguments) > 1 else table["__spec__"].name
            if span is None or span.name != name:
                # A lazy loader, or a plug-in loaded from its file.
                span = self.enter(name if type(name) is str else "?")
                span.at_lock = self.now()
                span.is_by_hand = True
            self.found(span, self.now())
            if span.spec is None:  # by hand, or `importlib.reload`
                span.spec = table.get("__spec__")
            span.at_code = self.now()
            span.nested_code = span.nested
        elif span is not None:
            at = self.now()
            self.found(span, at)
            span.at_unmarshal = at
            span.nested_call = span.nested
        return span

    def end_call(self, span: Span, function: "Any") -> None:
        """That function has ended."""
        try:
            self._ended(CALLS[function], span)
        except Exception:
            pass

    def _ended(self, kind: str, span: Span) -> None:
        at = self.now()
        if kind == "exec":
            span.exec = at - span.at_code - (span.nested - span.nested_code)
            if span.is_by_hand:
                self.leave(span)
            return
        took = at - span.at_unmarshal - (span.nested - span.nested_call)
        span.at_unmarshal = 0
        if kind == "frozen":
            span.unmarshal += took
            span.at_code = at
            span.nested_code = span.nested
        elif kind == "compile":
            span.compile += took
        elif kind == "dlopen":
            span.dlopen += took

    def counts_like(self, counts: "Any") -> "Any":
        """A kind of `Counts` that tells us what Velo decides."""
        return traced(counts, self)

    def say(self, who: str, why: str) -> None:
        """Velo's finder or loader has decided."""
        span = self.current()
        if span is not None:
            span.said = (who, why)

    # -- notes ---------------------------------------------------------------------------------------

    def flush(self, last: bool = False) -> None:
        """Append what has ended since; a file that cannot be written costs the trace and nothing else."""
        began = perf_counter_ns()
        spans = []
        while self.pending:  # one by one: other threads append meanwhile
            spans.append(self.pending.pop(0))
        lines: list[tuple[Any, ...]] = []
        try:
            if not self.has_head:
                self.has_head = True
                lines.append(self.head())
            for open_span in self.thread().stack:
                if not open_span.was_written:
                    open_span.was_written = True
                    lines.append(("open", *place_of(open_span), get_ident()))
            for ident, span in spans:
                lines.append(("import", *place_of(span), ident, *facts_of(span)))
            if last:
                lines.append(("end", began))
            data = "".join([ascii(line) + "\n" for line in lines]).encode()
            descriptor = open(self.path, FLAGS, 0o600)
            try:
                write(descriptor, data)
            finally:
                close(descriptor)
        except Exception:
            pass
        self.written = began

    def head(self) -> "tuple[Any, ...]":
        """Which process this is."""
        return (
            "velo-trace 1",
            {
                "pid": getpid(),
                "parent": getppid(),
                "argv": tuple(str(word) for word in getattr(sys, "orig_argv", ())),
                "executable": str(sys.executable),
                "version": sys.version.split()[0],
                "mode": self.mode,
                "began": self.began,
                "forked": self.is_forked,
                "before": self.before,
            },
        )

    def begin(self, mapping: "Any") -> None:
        """Trace from here on, until the program has ended."""
        self.flush()
        get_lock: Any = bootstrap._get_module_lock  # type: ignore[attr-defined]
        init: Any = bootstrap._init_module_attrs

        def _get_module_lock(name: str) -> ModuleLock:
            return ModuleLock(self, get_lock(name), name)

        def _init_module_attrs(spec: "Any", module: "Any", **options: "Any") -> "Any":
            try:
                self.note_spec(spec)
            except Exception:
                pass
            return init(spec, module, **options)

        stock: Any = bootstrap._call_with_frames_removed  # type: ignore[attr-defined]
        line = max(line for _, _, line in stock.__code__.co_lines() if line)
        made: dict[str, Any] = {}
        text = "\n" * (line - LINES_BEFORE) + CALL
        exec(compile(text, stock.__code__.co_filename, "exec", 0, True, 2), vars(bootstrap), made)
        external.marshal = Marshal(self)  # type: ignore[attr-defined]
        bootstrap._call_with_frames_removed = made["make"](self.begin_call, self.end_call)  # type: ignore[attr-defined]
        bootstrap._get_module_lock = _get_module_lock  # type: ignore[attr-defined]
        bootstrap._init_module_attrs = _init_module_attrs
        register_at_fork(after_in_child=self.after_fork)
        mapping.load_extension("atexit").register(self.flush, True)

    def after_fork(self) -> None:
        """The child has a file of its own, once it has something to say."""
        mine = self.thread()
        for span in mine.stack:
            span.was_written = False
        self.threads = {get_ident(): mine}
        self.pending = []
        self.began = perf_counter_ns()
        self.path = f"{self.folder}/{getpid()}-{self.began}.trace"
        self.is_forked, self.has_head = True, False
        self.before = ()


def place_of(span: Span) -> "tuple[Any, ...]":
    """Which import it was, and where it belongs."""
    return span.number, span.parent, span.name, span.importer, span.line, span.start


def facts_of(span: Span) -> "tuple[Any, ...]":
    """Times in ns, who served it and why, and where from."""
    total = span.end - span.start
    wait = span.at_lock - span.start
    if wait < SHORTEST_WAIT:
        wait = 0
    read = 0
    if not span.at_found:
        find = total - wait - span.nested
        if not span.error:
            wait, find = total - span.nested, 0  # Another thread did the work.
    else:
        find = span.at_found - span.at_lock - span.nested_found
        if span.at_code:
            read = span.at_code - span.at_found - (span.nested_code - span.nested_found)
            read -= span.unmarshal + span.compile + span.dlopen
        elif span.spec is not None and not span.dlopen:
            # A loader that goes its own way: what it does is its module's run.
            span.exec = span.end - span.at_found - (span.nested - span.nested_found)
            span.exec -= span.unmarshal + span.compile
    times = (find, read, span.unmarshal, span.compile, span.dlopen, span.exec, wait)
    return total, *(max(0, time) for time in times), span.error, *source_of(span)


def source_of(span: Span) -> "tuple[str, str, str, str, str, str]":
    """Who served it and why, its origin, its loader, and Velo's manifest and pack."""
    spec: Any = span.spec
    if not span.at_found:
        return ("nobody" if span.error else "waited"), span.said[1], "", "", "", ""
    loader: Any = getattr(spec, "loader", None)
    kind: Any = loader if isinstance(loader, type) else type(loader)
    loader_name = "" if loader is None else str(kind.__name__)
    origin = getattr(spec, "origin", None)
    origin = str(origin) if isinstance(origin, str) else ""
    manifest = pack = ""
    folder: Any = getattr(loader, "_folder", None) if loader_name == "VeloSourceLoader" else None
    who, why = span.said
    if folder is not None:
        loader_name = "SourceFileLoader"
        if who == "velo":
            manifest = folder.manifest.path
            pack = folder.manifest.pack_name((folder.records[loader._at] >> 32) - 1)
    if who != "velo":
        who = "python" if loader is None else LOADERS.get(loader_name, "other")
        if kind.__module__ not in ("_frozen_importlib", "_frozen_importlib_external") and folder is None:
            who = who if loader is None else "other"
    return who, why, origin, loader_name, manifest, pack


def traced(counts: "Any", tracer: "Tracer") -> "Any":
    """A kind of `Counts` (counts.py) that also tells the tracer what was decided."""

    class TracedCounts(counts):  # type: ignore[misc]
        __slots__ = ()

        @property
        def served(self) -> "Any":
            return counts.served.__get__(self)

        @served.setter
        def served(self, count: int) -> None:
            counts.served.__set__(self, count)
            if count:
                tracer.say("velo", "")

        @property
        def native(self) -> "Any":
            return counts.native.__get__(self)

        @native.setter
        def native(self, count: int) -> None:
            counts.native.__set__(self, count)
            if count:
                tracer.say("velo", "native module: found by the manifest")

        def defer(self, reason: str) -> None:
            tracer.say("python", reason)
            counts.defer(self, reason)

    return TracedCounts


def timed_loads(tracer: Tracer) -> "Callable[[Any], Any]":
    """`marshal.loads` for Velo's own loader."""
    loads = marshal.loads

    def timed(data: "Any") -> "Any":
        tracer.begin_unmarshal()
        try:
            return loads(data)
        finally:
            tracer.end_unmarshal()

    return timed


def start(target: str, mapping: "Any") -> "Tracer | None":
    """What will trace this interpreter; None if it cannot be, or is traced already.

    Args:
        target: what VELO_TRACE says.
        mapping: the module of that name, whose way to unmarshal is replaced.
    """
    if type(getattr(external, "marshal", None)) is not type(sys):
        return None  # velo enable and velo run both brought us here
    tracer = Tracer(target, "native" if type(mapping.serve) is BUILTIN else "twin")
    if not tracer.folder.startswith("/"):
        return None
    mapping.set_loads(timed_loads(tracer))
    return tracer
