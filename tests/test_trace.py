# SPDX-License-Identifier: Apache-2.0
"""`velo trace`: the program does not notice, and what is said about its imports is true."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import CHECKOUT, VELO, Result, Velo
from tests.support.tree import Tree

NATIVE = CHECKOUT / "velo_import" / "_native" / "core.abi3.so"
PHASES = ("find", "read", "unmarshal", "compile", "dlopen", "exec", "wait")
APP = {
    "app.py": "import box.outer\ntry:\n    import nowhere\nexcept ImportError:\n    pass\nprint('done')\n",
    "box/__init__.py": "",
    "box/outer.py": "import time\nfrom box import inner\ntime.sleep(0.01)\n",
    "box/inner.py": "import time, _json\ntime.sleep(0.03)\n",
}


def traced(velo: Velo, *arguments: str | Path, flags: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """The trace of a Python program that has to succeed."""
    path = velo.folder / "trace.json"
    done = velo.command("trace", *flags, "-o", path, "--", velo.python, *arguments, **options)
    assert done.code == 0, done.stderr
    velo.wait_learned()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def modules(trace: dict[str, Any], process: int = 0) -> dict[str, dict[str, Any]]:
    """The imports of one process by name; of several of one name the last."""
    return {each["name"]: each for each in trace["processes"][process]["imports"]}


@pytest.mark.core
@pytest.mark.parametrize("flags", [(), ("--plain",)], ids=["velo", "plain"])
def test_what_each_import_took(tree: Tree, velo: Velo, flags: tuple[str, ...]) -> None:
    """Times lie where they were spent, phases and what is within add up, and the importer is named."""
    tree.write(APP)
    for _ in range(2):
        velo.learn("app.py")

    found = modules(traced(velo, "app.py", flags=flags))

    outer, inner = found["box.outer"], found["box.inner"]
    assert inner["exec"] > 30e6
    assert 10e6 < outer["exec"] <= outer["total"] - inner["total"]
    assert outer["total"] > inner["total"] + 10e6
    assert inner["parent"] == outer["number"]
    assert (inner["importer"], inner["line"]) == ("box.outer", 2)
    assert (outer["importer"], outer["line"]) == ("__main__", 1)
    for each in found.values():
        assert sum(each[phase] for phase in PHASES) <= each["self_time"] + 1000, each["name"]
        assert all(each[phase] >= 0 for phase in PHASES)
    assert inner["unmarshal"] > 0
    assert inner["compile"] == 0
    assert found["nowhere"]["error"] == "ModuleNotFoundError"
    assert found["nowhere"]["served"] == "nobody"


@pytest.mark.core
def test_who_served_it_and_why(tree: Tree, velo: Velo) -> None:
    """Served modules name manifest and pack, the others the reason; without Velo everything is Python's."""
    tree.write(APP)
    velo.learn("app.py")
    velo.learn("app.py")
    tree.write({"box/inner.py": "import time, _json\ntime.sleep(0.03)\nedited = True\n"})

    accelerated, plain = traced(velo, "app.py"), traced(velo, "app.py", flags=("--plain",))

    found = modules(accelerated)
    assert found["box.outer"]["served"] == "velo"
    assert found["box.outer"]["manifest"].startswith(str(velo.home))
    assert (velo.home / "packs" / "v1" / found["box.outer"]["pack"]).is_file()
    assert found["box.inner"]["served"] == "python"
    assert found["box.inner"]["reason"] == "source changed"
    assert found["box.inner"]["compile"] > 0
    assert found["nowhere"]["served"] == "nobody"
    assert accelerated["processes"][0]["mode"] == ("native" if NATIVE.exists() else "twin")
    assert {each["served"] for each in modules(plain).values()} <= {"python", "builtin", "frozen", "nobody"}
    assert plain["processes"][0]["mode"] == "plain"
    assert "sys" in plain["processes"][0]["before"]


def test_an_enabled_environment_is_traced_once(tree: Tree, velo: Velo) -> None:
    """Where `velo enable` brings Velo in as well there is one trace all the same, and --plain is plain."""
    tree.write(APP)
    velo.learn("app.py")
    velo.learn("app.py")
    enabled = velo.command("enable", velo.python.parent.parent)
    assert enabled.code == 0, enabled.stderr

    accelerated, plain = traced(velo, "app.py"), traced(velo, "app.py", flags=("--plain",))

    assert len(accelerated["processes"]) == len(plain["processes"]) == 1
    assert modules(accelerated)["box.outer"]["served"] == "velo"
    assert "velo" not in {each["served"] for each in modules(plain).values()}
    assert velo.plain("app.py").stdout == "done\n"


def test_native_modules_are_loaded(tree: Tree, velo: Velo) -> None:
    """What the system's loader takes is told apart from finding and running."""
    tree.write({"app.py": "import _ctypes\n"})

    for flags in ((), ("--plain",)):
        found = modules(traced(velo, "app.py", flags=flags))["_ctypes"]
        assert found["loader"] == "ExtensionFileLoader"
        assert found["dlopen"] > 0


@pytest.mark.core
@pytest.mark.parametrize("flags", [(), ("--plain",)], ids=["velo", "plain"])
def test_the_program_does_not_notice(tree: Tree, velo: Velo, flags: tuple[str, ...]) -> None:
    """Output, exit code, tracebacks, depth of the stack and what is loaded are as without a trace."""
    depth = "import sys\nframe, depth = sys._getframe(), 0\n"
    depth += "while frame:\n    frame, depth = frame.f_back, depth + 1"
    tree.write(
        {
            "deep.py": depth + "\nprint(depth)\n",
            "broken.py": "import deep\n1 / 0\n",
            "app.py": """
                import importlib, sys, traceback
                names = list(sys.modules)
                for name in ("broken", "nowhere.inner", "deep.inner"):
                    try:
                        importlib.import_module(name)
                    except Exception:
                        traceback.print_exc(file=sys.stdout)
                importlib.reload(sys.modules["deep"])
                print(names)
                print([key for key in sys.stdin])
                print(sorted(key for key in globals()))
                sys.stdout.flush()
                import broken
                """,
        }
    )
    plain = velo.plain("app.py", stdin="one\ntwo\n")
    for _ in range(2):
        done = velo.command(
            "trace", *flags, "-o", velo.folder / "t.json", "--", velo.python, "app.py", stdin="one\ntwo\n"
        )
        assert done.answer == plain.answer
        velo.wait_learned()
    assert plain.code == 1


def test_recursion_goes_as_deep(tree: Tree, velo: Velo) -> None:
    """A chain of imports that just fits into Python's limit fits into it under a trace as well."""
    tree.write({f"chain/c{at}.py": f"print({at})\nfrom chain import c{at + 1}\n" for at in range(400)})
    program = "import sys\nsys.setrecursionlimit(900)\n"
    program += "try:\n    from chain import c0\nexcept RecursionError:\n    pass\n"
    tree.write({"chain/__init__.py": "", "app.py": program})
    plain = velo.plain("app.py")

    done = velo.command("trace", "--plain", "-o", velo.folder / "t.json", "--", velo.python, "app.py")

    assert done.answer == plain.answer
    assert 50 < len(plain.stdout.splitlines()) < 399


def test_threads_have_their_own_tree(tree: Tree, velo: Velo) -> None:
    """Imports of two threads at a time do not get into each other's way, and who waited is seen."""
    tree.write(
        {
            "slow.py": "import time\ntime.sleep(0.2)\nimport slow_inner\n",
            "slow_inner.py": "",
            "other.py": "import time\ntime.sleep(0.1)\nimport other_inner\n",
            "other_inner.py": "",
            "app.py": """
                import threading, time
                def use(*names):
                    for name in names:
                        __import__(name)
                threads = [
                    threading.Thread(target=use, args=names) for names in (["slow"], ["other"], ["slow"])
                ]
                for thread in threads:
                    thread.start()
                    time.sleep(0.02)
                for thread in threads:
                    thread.join()
                """,
        }
    )

    for flags in ((), ("--plain",)):
        entries = traced(velo, "app.py", flags=flags)["processes"][0]["imports"]
        found = {each["name"]: each for each in entries if each["served"] != "waited"}
        waited = [each for each in entries if each["served"] == "waited" and each["name"] == "slow"]
        assert found["slow_inner"]["parent"] == found["slow"]["number"]
        assert found["other_inner"]["parent"] == found["other"]["number"]
        assert found["slow"]["thread"] != found["other"]["thread"]
        assert [each["wait"] > 50e6 for each in waited] == [True]


def test_every_process_has_its_trace(tree: Tree, velo: Velo) -> None:
    """Children, forked children that never end properly, what a process was before exec: all are there."""
    tree.write(
        {
            "one.py": "",
            "two.py": "",
            "three.py": "",
            "app.py": """
                import os, subprocess, sys
                subprocess.run([sys.executable, "-c", "import one"], check=True)
                child = os.fork()
                if child == 0:
                    import two
                    os._exit(0)
                os.waitpid(child, 0)
                os.execv(sys.executable, [sys.executable, "-c", "import three"])
                """,
        }
    )

    trace = traced(velo, "app.py")

    processes = trace["processes"]
    assert len(processes) == 4
    names = [{each["name"] for each in process["imports"]} for process in processes]
    assert [[name in each for each in names].count(True) for name in ("one", "two", "three")] == [1, 1, 1]
    assert processes[0]["pid"] == processes[3]["pid"]
    forked = next(process for process in processes if process["forked"])
    assert [each["name"] for each in forked["imports"]] == ["two"]
    assert forked["parent"] == processes[0]["pid"]


def test_an_import_that_never_ends(tree: Tree, velo: Velo) -> None:
    """A server that is started by an import and killed leaves a trace of what there was."""
    tree.write(
        {
            "before.py": "",
            "after.py": "",
            "server.py": """
                import time, os, signal
                import before
                time.sleep(0.15)
                import after
                os.kill(os.getpid(), signal.SIGKILL)
                """,
        }
    )
    path = velo.folder / "trace.json"

    done = velo.command("trace", "-o", path, "--", velo.python, "-c", "import server")

    assert done.code == -signal.SIGKILL
    found = modules(json.loads(path.read_text()))
    assert found["server"]["served"] == "open"
    assert found["server"]["total"] > 100e6
    assert found["after"]["parent"] == found["server"]["number"]


def test_signals_reach_the_program(tree: Tree, velo: Velo) -> None:
    """Asked to end, the program ends in its own way, and so does `velo trace`."""
    tree.write(
        {
            "app.py": """
                import os, signal, sys, time
                def leave(number, frame):
                    os.write(1, b"leaving\\n")
                    sys.exit(7)
                signal.signal(signal.SIGTERM, leave)
                os.write(1, b"ready\\n")
                time.sleep(30)
                """
        }
    )
    words = [*VELO, "trace", "-o", str(velo.folder / "t.json"), "--", str(velo.python), "app.py"]
    with subprocess.Popen(
        words, cwd=velo.cwd, env=velo.velo_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "leaving\n"
    assert process.returncode == 7


def test_loaded_by_hand(tree: Tree, velo: Velo) -> None:
    """Plug-ins loaded from their files, lazy modules and reloads are seen as well."""
    tree.write(
        {
            "plugin.py": "import colorsys\n",
            "lazy.py": "value = 1\n",
            "again.py": "",
            "app.py": """
                import importlib.util, sys, again
                spec = importlib.util.spec_from_file_location("the_plugin", "plugin.py")
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
                spec = importlib.util.find_spec("lazy")
                spec.loader = importlib.util.LazyLoader(spec.loader)
                module = importlib.util.module_from_spec(spec)
                sys.modules["lazy"] = module
                spec.loader.exec_module(module)
                assert module.value == 1
                importlib.reload(again)
                """,
        }
    )

    for flags in ((), ("--plain",)):
        entries = traced(velo, "app.py", flags=flags)["processes"][0]["imports"]
        names = [each["name"] for each in entries]
        found = {each["name"]: each for each in entries}
        assert found["colorsys"]["parent"] == found["the_plugin"]["number"]
        assert found["the_plugin"]["exec"] > 0
        assert found["lazy"]["exec"] > 0
        assert names.count("again") == 2


def test_importtime_as_python_says_it(tree: Tree, velo: Velo) -> None:
    """tuna and its like read from us what `python -X importtime` says: the same modules in the same order."""
    tree.write(APP)
    own = velo.plain("-X", "importtime", "app.py").stderr
    pattern = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")

    said = velo.command("trace", "--plain", "--importtime", "--", velo.python, "app.py").stderr

    assert (
        said.splitlines()[0]
        == own.splitlines()[0]
        == "import time: self [us] | cumulative | imported package"
    )
    lines = [pattern.fullmatch(line) for line in said.splitlines()[1:]]
    expected = [found for line in own.splitlines()[1:] if (found := pattern.fullmatch(line)) is not None]
    places = [(each[3], each[4]) for each in lines if each is not None]
    assert len(places) == len(lines)
    # `site` has begun before us; and Debian's Pythons have a sitecustomize of their own, which ours imports.
    ours = [name for _, name in places if name != "sitecustomize"]
    theirs = [each[4] for each in expected if each[4] not in ("site", "sitecustomize")]
    assert ours == theirs[-len(ours) :]


def test_a_saved_trace_is_shown_again(tree: Tree, velo: Velo) -> None:
    """`--from` says of a saved trace what was said of it then, and `--tree` indents who imported whom."""
    tree.write(APP)
    path = velo.folder / "trace.json"
    text = velo.folder / "trace.txt"
    velo.command("trace", "-o", path, "-o", text, "--", velo.python, "app.py")

    shown = velo.command("trace", "--from", path)
    drawn = velo.command("trace", "--tree", "--from", path)
    compared = velo.command("trace", "--from", path, "--against", path)

    assert shown.answer == (text.read_text(), "", 0)
    columns = {
        name: line.index(f" {name} ")
        for line in drawn.stdout.splitlines()
        for name in ("box.outer", "box.inner")
        if f" {name} " in line
    }
    assert columns["box.inner"] == columns["box.outer"] + 2
    assert "compared with" in compared.stdout


def test_json_is_one_object_on_stdout(tree: Tree, velo: Velo) -> None:
    """With --json stdout is the trace, and the program's own output goes to stderr."""
    tree.write(APP)

    done = velo.command("trace", "--json", "--", velo.python, "app.py")

    assert json.loads(done.stdout)["kind"] == "velo trace"
    assert done.stderr == "done\n"


def mistake(velo: Velo, *arguments: str | Path, **options: Any) -> Result:
    return velo.command("trace", *arguments, **options)


def test_mistakes_have_hints(tree: Tree, velo: Velo) -> None:
    """What cannot be done is said in one line, with a hint, and with the exit code of `velo run`."""
    tree.write({"broken.json": "{}"})

    assert mistake(velo, "--", "no-such-program").code == 127
    assert mistake(velo, "--", "/").code == 126
    assert mistake(velo).code == 2
    assert mistake(velo, "-o", "page.pdf", "--", velo.python, "-c", "").code == 2
    assert mistake(velo, "--from", "broken.json").code == 1
    assert mistake(velo, "--from", "nowhere.json").code == 1
    assert mistake(velo, "--", velo.python, "-c", "", env={"VELO_DISABLE": "1"}).code == 1
    stranger = mistake(velo, "--", "sh", "-c", "echo hello; exit 3")
    assert (stranger.stdout, stranger.code) == ("hello\n", 3)
    assert "hint:" in stranger.stderr


def test_a_folder_that_cannot_be_written(tree: Tree, velo: Velo) -> None:
    """A trace that cannot be written down costs the trace, never the program."""
    tree.write(APP)

    for target in ("/nonexistent/folder", "relative", "plain:/nonexistent/folder"):
        done = velo.run("app.py", env={"VELO_TRACE": target})
        assert done.answer == ("done\n", "", 0)


def test_without_a_trace_nothing_is_replaced(tree: Tree, velo: Velo) -> None:
    """An ordinary start does not even load the tracing code; a traced one is traced once."""
    program = """
        import _frozen_importlib, _frozen_importlib_external, sys
        print(_frozen_importlib._get_module_lock.__code__.co_filename)
        print(type(_frozen_importlib_external.marshal))
        """
    tree.write({"app.py": program})
    plain = velo.plain("app.py").stdout

    assert velo.run("app.py").stdout == plain
    folder = velo.folder / "traces"
    folder.mkdir(mode=0o700)
    assert velo.run("app.py", env={"VELO_TRACE": str(folder)}).stdout != plain
    assert len(list(folder.iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_descriptor_stays_open(tree: Tree, velo: Velo) -> None:
    """The trace is written line by line and closed: a program that lists its descriptors finds its own."""
    tree.write({"app.py": "import os, json\nprint(sorted(os.listdir('/proc/self/fd')))\n"})
    plain = velo.plain("app.py").stdout

    assert velo.command("trace", "-o", velo.folder / "t.json", "--", velo.python, "app.py").stdout == plain
