# SPDX-License-Identifier: Apache-2.0
"""Imports the modules it is given and writes down everything a program could notice about them.

Runs in the interpreter and environment that are swept, one process for one package, plain or accelerated; it
cannot tell which. Leaves comparing to compare.py. The surprise: it imports nothing of its own before the last
module of the package has been imported, because whatever it had loaded would not be loaded by the package.
"""

import builtins
import posix
import sys

WATCHED = frozenset(("import", "open", "compile", "exec", "marshal.loads"))
CODE_ATTRIBUTES = (
    *("co_filename", "co_name", "co_qualname", "co_firstlineno", "co_flags", "co_stacksize", "co_argcount"),
    *("co_posonlyargcount", "co_kwonlyargcount", "co_nlocals", "co_names", "co_varnames", "co_freevars"),
    *("co_cellvars", "co_code", "co_linetable", "co_exceptiontable"),
)
MOST_RAISED = 12  # modules per package that are made to fail on purpose
MOST_FUNCTIONS = 20  # per module, whose source is asked for


class Recorder:
    """What auditors are told while the package is imported."""

    def __init__(self):
        self.is_on = False
        self.events = []

    def __call__(self, event, arguments):
        if self.is_on and event in WATCHED:
            if event == "exec":
                self.events.append((event, arguments[0]))
            elif event == "compile":
                self.events.append((event, str(arguments[1])))
            elif event == "marshal.loads":
                self.events.append((event,))
            else:
                self.events.append(
                    (event, *[str(each) for each in arguments[: 2 if event == "import" else 3]])
                )


def import_all(names, progress):
    """Import every module, in order; gives what was raised."""
    raised = {}
    for name in names:
        # Written first: some modules end the process, or never come back.
        posix.write(progress, name.encode() + b"\n")
        try:
            __import__(name)
        except BaseException as error:
            raised[name] = error
    return raised


def namespace(module):
    """The module's dict, without waking a lazy one."""
    try:
        return object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}


def class_name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def describe_modules(modules):
    """What every module says of itself: {module: {question: answer}}."""
    seen = {}
    for name, module in modules:
        if name == "__main__":
            continue
        known = namespace(module)
        answers = {"type": class_name(type(module)), "names": " ".join(map(str, known))}
        for key in ("__name__", "__file__", "__path__", "__cached__", "__package__"):
            if key in known:
                answers[key] = repr(known[key])
        for key, loader in (("__loader__", known.get("__loader__")), ("spec.loader", None)):
            if key == "spec.loader":
                spec = known.get("__spec__")
                if spec is None:
                    continue
                attributes = getattr(spec, "__dict__", {})
                answers["spec"] = class_name(type(spec)) + " " + " ".join(attributes)
                for attribute, value in attributes.items():
                    if attribute != "loader":
                        answers[f"spec.{attribute}"] = repr(value)
                answers["spec.parent"] = repr(getattr(spec, "parent", None))
                answers["spec.has_location"] = repr(getattr(spec, "has_location", None))
                loader = attributes.get("loader")
            kind = loader if isinstance(loader, type) else type(loader)
            answers[f"{key} classes"] = " ".join(class_name(each) for each in kind.__mro__)
            answers[f"{key} values"] = repr(getattr(loader, "__dict__", {})) if kind is not loader else ""
        seen[name] = answers
    return seen


def digest(data):
    from hashlib import blake2b

    return blake2b(data, digest_size=8).hexdigest()


def constant(value):
    """A constant of a code object as text that does not depend on the run."""
    kind = type(value).__name__
    if kind == "code":
        return "code " + digest_code(value)
    if kind == "tuple":
        return "(" + ", ".join(map(constant, value)) + ")"
    if kind == "frozenset":
        return "{" + ", ".join(sorted(map(constant, value))) + "}"
    return f"{kind} {value!r}"


def digest_code(code):
    """One value for all that a code object is, and all within it."""
    parts = [getattr(code, name) for name in CODE_ATTRIBUTES]
    return digest((repr(parts) + constant(code.co_consts)).encode("utf-8", "surrogatepass"))


def file_names(code):
    """Every file name within a code object."""
    found = {code.co_filename}
    for value in code.co_consts:
        if type(value) is type(code):
            found |= file_names(value)
    return found


def event_lines(events):
    """The events as text; what was executed by what it contains."""
    lines = []
    for event, *arguments in events:
        if event == "exec" and hasattr(arguments[0], "co_code"):
            code = arguments[0]
            names = " ".join(sorted(map(repr, file_names(code))))
            arguments = [code.co_name, names, digest_code(code)]
        lines.append(" ".join([event, *map(str, arguments)]))
    return lines


def answer_of(question, *arguments):
    """The answer as text, or the exception as text."""
    try:
        return str(question(*arguments))
    except Exception as error:
        return f"{class_name(type(error))}: {error}"


def sources(names):
    """What `inspect` and `linecache` say of each module and of what it defines."""
    import inspect
    import types

    def short(lines):
        text, number = lines
        return f"{number} {len(text)} {digest(''.join(text).encode('utf-8', 'surrogatepass'))}"

    seen = {}
    for name in names:
        module = sys.modules.get(name)
        if type(module) is not types.ModuleType:
            continue
        answers = {"file": answer_of(inspect.getsourcefile, module)}
        answers["module"] = answer_of(
            lambda module: short((inspect.getsource(module).splitlines(True), 0)), module
        )
        answers["doc"] = answer_of(inspect.getdoc, module)
        functions = classes = 0
        for key, value in list(namespace(module).items()):
            if type(value) is types.FunctionType and value.__module__ == name and functions < MOST_FUNCTIONS:
                functions += 1
                answers[key] = answer_of(lambda value: short(inspect.getsourcelines(value)), value)
                answers[f"{key} file"] = value.__code__.co_filename
            elif type(value) is type and value.__module__ == name and not classes:
                # One: before 3.13 each of them has the whole module parsed.
                classes += 1
                answers[key] = answer_of(lambda value: short(inspect.getsourcelines(value)), value)
        seen[name] = answers
    return seen


def functions(names):
    """What is executed when somebody calls what the modules define: {module: {name: code}}."""
    import types

    def code_in(value):
        value = getattr(value, "fget", value) if type(value) is property else value
        value = value.__func__ if type(value) in (staticmethod, classmethod) else value
        return value.__code__ if type(value) is types.FunctionType else None

    seen = {}
    for name in names:
        module = sys.modules.get(name)
        if type(module) is not types.ModuleType:
            continue
        found = {}
        for key, value in list(namespace(module).items()):
            if (code := code_in(value)) is not None:
                found[key] = code
            elif type(value) is type and value.__module__ == name:
                found |= {f"{key}.{part}": code_in(inner) for part, inner in vars(value).items()}
        seen[name] = {
            key: f"{digest_code(code)} {' '.join(sorted(file_names(code)))}"
            for key, code in found.items()
            if code is not None
        }
    return seen


def code_of(names):
    """What each loader gives when it is asked again: {module: code, source and data}."""
    seen = {}
    for name in names:
        known = namespace(sys.modules.get(name))
        loader = getattr(known.get("__spec__"), "loader", None)
        answers = {}
        if hasattr(loader, "get_code"):

            def code(loader=loader, name=name):
                found = loader.get_code(name)
                return (
                    None if found is None else f"{digest_code(found)} {' '.join(sorted(file_names(found)))}"
                )

            answers["get_code"] = answer_of(code)
        if hasattr(loader, "get_source"):

            def source(loader=loader, name=name):
                found = loader.get_source(name)
                return None if found is None else hash(found)  # before 3.12, the hash of None is an address

            answers["get_source"] = answer_of(source)
        for question in ("is_package", "get_filename"):
            if hasattr(loader, question):
                answers[question] = answer_of(getattr(loader, question), name)
        seen[name] = answers
    return seen


def specs(names):
    """What `importlib.util.find_spec` finds for each name once more, with nothing of it in `sys.modules`."""
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec

    def find(name):
        module = sys.modules.pop(name, None)
        try:
            spec = find_spec(name)
        finally:
            if module is not None:
                sys.modules[name] = module
        if type(spec) is not ModuleSpec:
            return type(spec)
        loader = type(spec.loader)
        return (spec.name, spec.origin, spec.cached, spec.submodule_search_locations, class_name(loader))

    return {name: answer_of(find, name) for name in names}


def walk(tops):
    """What `pkgutil` finds below the packages; it imports packages that are not imported yet."""
    import pkgutil

    lines = []
    for top in tops:
        path = namespace(sys.modules.get(top)).get("__path__")
        if path is None:
            continue
        try:
            for found in pkgutil.walk_packages(
                path, top + ".", onerror=lambda name: lines.append(f"error {name}")
            ):
                lines.append(f"{found.name} {found.ispkg} {found.module_finder}")
        except BaseException as error:
            lines.append(f"{class_name(type(error))}: {error}")
    return lines


def resources(names):
    """What `importlib.resources` lists and reads in each package: {package: {path: content}}."""
    import importlib.resources

    def listed(folder, prefix, answers, depth):
        for each in sorted(folder.iterdir(), key=lambda each: each.name):
            place = f"{prefix}{each.name}"
            if each.name == "__pycache__" or each.name.endswith((".so", ".a")) or ".so." in each.name:
                answers[place] = "not read"
            elif each.is_dir():
                answers[place] = "folder"
                if depth < 6 and not each.joinpath("__init__.py").is_file():
                    listed(each, place + "/", answers, depth + 1)
            else:
                data = each.read_bytes()
                answers[place] = f"{len(data)} {digest(data)}"

    seen = {}
    for name in names:
        if "__path__" not in namespace(sys.modules.get(name)):
            continue
        answers = seen[name] = {}
        try:
            files = importlib.resources.files(name)
            answers[""] = f"{class_name(type(files))} {files}"
            listed(files, "", answers, 0)
        except Exception as error:
            answers["error"] = f"{class_name(type(error))}: {error}"
        loader = getattr(namespace(sys.modules[name]).get("__spec__"), "loader", None)
        if hasattr(loader, "get_resource_reader"):
            answers["reader"] = answer_of(reader_class, loader, name)
    return seen


def reader_class(loader, name):
    return class_name(type(loader.get_resource_reader(name)))


class Raised(Exception):
    """Raised on purpose, from within a module's import."""


def tracebacks_on_purpose(names):
    """The traceback a user sees when the first import within a module fails."""
    import traceback
    import types

    seen = {}
    stock = builtins.__import__
    step = max(1, len(names) // MOST_RAISED)
    for name in names[::step]:
        module = sys.modules.get(name)
        spec = namespace(module).get("__spec__")
        if type(module) is not types.ModuleType or not str(getattr(spec, "origin", "")).endswith(".py"):
            continue

        def failing(wanted, globals=None, locals=None, fromlist=(), level=0, *, name=name):
            if globals is not None and globals.get("__name__") == name:
                raise Raised(wanted)
            return stock(wanted, globals, locals, fromlist, level)

        del sys.modules[name]
        builtins.__import__ = failing
        try:
            exec(compile(f"import {name}", "<sweep>", "exec"), {"__name__": "sweep"})
        except BaseException:
            seen[name] = traceback.format_exc()
        finally:
            builtins.__import__ = stock
            sys.modules[name] = module
            parent, _, tail = name.rpartition(".")
            if parent in sys.modules:
                namespace(sys.modules[parent])[tail] = module
    return seen


def metadata():
    """What `importlib.metadata` says of the whole environment."""
    import importlib.metadata as metadata

    seen = {}
    for found in metadata.distributions():
        name = str(found.metadata["Name"])
        seen[f"{name} {found.version}"] = {
            "files": str(len(found.files or [])),
            "first": answer_of(lambda found=found: found.locate_file((found.files or ["nothing"])[0])),
            "entry points": str([str(each) for each in found.entry_points]),
            "requires": str(found.requires),
            "class": class_name(type(found)),
        }
    seen["order"] = {str(number): found.name for number, found in enumerate(metadata.distributions())}
    seen["entry points"] = {"all": str([str(each) for each in metadata.entry_points()])}
    seen["packages"] = {key: str(value) for key, value in metadata.packages_distributions().items()}
    return seen


def main(plan, output, listens):
    """`plan`: a file of module names. Writes `output` (JSON), and the names as they are reached beside it.
    `listens`: whether this is an auditor; programs that are audited get no images.
    """
    with open(plan, encoding="utf-8") as file:
        names = file.read().split()
    progress = posix.open(
        output + ".progress", posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC
    )
    sys.argv[:] = ["sweep", "--version"]  # for `__main__` modules: most answer and end
    recorder = Recorder()
    if listens:
        sys.addaudithook(recorder)
    modules_before = list(sys.modules)
    recorder.is_on = True
    raised = import_all(names, progress)
    recorder.is_on = False
    modules = list(sys.modules.items())
    builtins_import = builtins.__import__

    # In every run: one that listens needs it for what was executed, another only if something was imported.
    import hashlib  # noqa: F401
    import traceback

    posix.write(progress, b"# describing\n")
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    seen = {
        "outcome": {
            name: f"{class_name(type(raised[name]))}: {answer_of(str, raised[name])}"
            if name in raised
            else "imported"
            for name in names
        },
        "traceback": {
            name: answer_of(lambda e: "".join(traceback.format_exception(e)), raised[name]) for name in raised
        },
        "modules before": modules_before,
        "modules": [name for name, _ in modules],
        "events": event_lines(recorder.events),
        "module": describe_modules(modules),
        "system": {
            "path": repr(sys.path),
            "finders": repr(
                [getattr(each, "__name__", None) or class_name(type(each)) for each in sys.meta_path]
            ),
            "hooks": repr([getattr(each, "__qualname__", each) for each in sys.path_hooks]),
            "importers": repr(sorted(map(str, sys.path_importer_cache))),
            "import": repr(builtins_import),
        },
    }
    imported = [name for name in names if name in sys.modules]
    posix.write(progress, b"# code\n")
    seen["functions"] = functions(imported)
    seen["code"] = code_of(imported)
    posix.write(progress, b"# source\n")
    seen["source"] = sources(imported)
    posix.write(progress, b"# resources\n")
    seen["resources"] = resources(imported)
    posix.write(progress, b"# walk\n")
    seen["walk"] = walk(tops)
    posix.write(progress, b"# raised\n")
    seen["raised"] = tracebacks_on_purpose(imported)
    posix.write(progress, b"# specs\n")
    seen["specs"] = specs(imported)
    if names[:1] == ["importlib.metadata"]:
        seen["metadata"] = metadata()

    import json

    with open(output, "w", encoding="utf-8", errors="surrogatepass") as file:
        json.dump(seen, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "listens")
