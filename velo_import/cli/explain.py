# SPDX-License-Identifier: Apache-2.0
"""`velo explain`: asks the target interpreter itself, with the hook in place, who would serve a module.

The answer is hook/explain.py's; here it is only carried. The surprise: parents of the module are imported,
as any search does, so the answer comes back through a pipe of its own and not through the program's stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import click

from ..errors import UsageFault, VeloError
from ..ingest.interpreter import OLDEST
from ..ingest.node.trees import SUFFIXES
from ..launch.environment import child_environment
from ..launch.execute import Fault, check_manifest
from ..launch.injection import injection_folder, prepare
from . import render
from .common import default_python, is_readonly, json_flag, python_option, settings
from .manifests import read_manifest
from .node.explain import explain_node

EXPLAINER = Path(__file__).resolve().parents[1] / "hook" / "explain.py"
PATIENCE_SECONDS = 120

# Runs in the target interpreter. A path becomes a module name by the sys.path entry that holds it.
QUESTION = r"""
import json, os, sys
sys.argv[:] = ["-c"]
path = os.path.abspath(name)
if name.endswith((".py", ".so", ".pyc")) or "/" in name:
    for entry in sorted({os.path.abspath(entry) for entry in sys.path}, key=len, reverse=True):
        if path.startswith(entry + os.sep):
            parts = path[len(entry) + 1:].split(os.sep)
            parts[-1] = parts[-1].partition(".")[0]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            break
namespace = {"__name__": "velo_explain"}
with open(explainer, "rb") as file:
    exec(compile(file.read(), explainer, "exec"), namespace)
try:
    answer = namespace["explain"](name)
except Exception as error:
    reason = "%s: %s" % (type(error).__name__, error)
    answer = {"module": name, "served_by": None, "reason": reason, "origin": None}
import importlib.util
answer["build"] = "%s-%s" % (sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER.hex())
answer["version"] = sys.version.split()[0]
with open(pipe, "w", encoding="utf-8") as file:
    json.dump(answer, file)
"""


@click.command("explain")
@click.argument("name", metavar="MODULE|PATH")
@click.option("--manifest", metavar="FILE", default="", help="Consult this manifest first.")
@click.option("--check", type=click.Choice(["stat", "root", "none"]), help="How freshness is checked.")
@python_option
@json_flag
def command(name: str, manifest: str, check: str | None, python: str | None, as_json: bool) -> int:
    """Say who would serve a module, and why, or why not.

    Exit code 1 when Python does not find the module either. Of a .js, .cjs or .json file: which Node would be
    served with it; exit code 1 if none.
    """
    if name.endswith(SUFFIXES):
        return explain_node(name, as_json)
    interpreter = python or default_python()
    try:
        check_manifest(manifest)
    except Fault as fault:
        raise UsageFault(fault.message, hint=fault.hint) from None
    answer = explain(interpreter, name, manifest=manifest, check=check or "")
    hint = _hint(answer, manifest)
    if hint:
        answer["hint"] = hint
    if as_json:
        render.data({"python": interpreter, **answer})
    else:
        shown = {
            key: str(value) for key, value in answer.items() if value and key not in ("build", "version")
        }
        render.pairs({key.replace("_", " "): value for key, value in shown.items()})
    return 0 if answer.get("served_by") else 1


def _hint(answer: dict[str, Any], manifest: str) -> str:
    """What to do about an answer that nobody hoped for; empty where all is as it should be."""
    reason = str(answer.get("reason"))
    build = str(answer.get("build"))
    if manifest:
        made_for = read_manifest(Path(manifest)).build.tag
        if made_for != build:
            return f"{manifest} is for {made_for}, and this interpreter is {build}"
    if reason == "pack missing":
        return "its pack is gone, or was copied or written to: see `velo doctor`, then run `velo ingest`"
    if "not active" not in reason:
        return ""
    if not build.startswith("cpython-") or _version(answer) < OLDEST:
        return f"this is {build.partition('-')[0]} {answer.get('version')}; Velo helps CPython 3.11 or later"
    return "run the program once with `velo run`, or see `velo doctor`"


def _version(answer: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(answer.get("version")).split(".")[:2])


def explain(python: str, name: str, *, manifest: str = "", check: str = "") -> dict[str, Any]:
    """The hook's answer about one module, from inside `python`."""
    environ = {key: value for key, value in os.environ.items() if key not in ("VELO_LOG", "VELO_STATS")}
    if not is_readonly():
        prepare(settings().home)
    # The question itself is nothing to learn from.
    environment = child_environment(
        environ,
        injection_folder=injection_folder(),
        home=settings().home,
        manifest=manifest,
        check=check,
        learn=False,
    )
    reader, writer = os.pipe()
    code = f"pipe, explainer, name = {writer}, {str(EXPLAINER)!a}, {name!a}\n{QUESTION}"
    try:
        with os.fdopen(reader, "rb") as answers:
            process = subprocess.Popen(
                [python, "-c", code],
                env=environment,
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            os.close(writer)
            _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
            answer = answers.read()
    except OSError as error:
        raise UsageFault(
            f"cannot run {python}: {error.strerror}", hint="name an interpreter with --python"
        ) from None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise VeloError(
            f"{python} gave no answer in {PATIENCE_SECONDS} s", hint=f"try: {python} -c 'import {name}'"
        ) from None
    if not answer:
        last = complaint.decode(errors="replace").strip().splitlines()
        raise VeloError(
            f"{python} ended before it could answer: {last[-1] if last else process.returncode}",
            hint="name a CPython 3.11 or later with --python",
        )
    found: dict[str, Any] = json.loads(answer)
    return found
