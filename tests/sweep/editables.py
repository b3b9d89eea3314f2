# SPDX-License-Identifier: Apache-2.0
"""Projects that are installed in place, one for every way in which back ends do that.

Some write a path into a `.pth` file, some a finder of their own that runs before or after ours, one a loader
that rebuilds the project when it is imported. All projects hold the same package under another name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.support.running import clean_environment

# Everything the back ends need, from requirements.lock.
BACK_ENDS = frozenset(
    (
        *("setuptools", "wheel", "packaging", "hatchling", "editables", "flit-core", "poetry-core"),
        *("pdm-backend", "scikit-build-core", "meson-python", "meson", "ninja", "cmake"),
        *("pathspec", "pluggy", "trove-classifiers", "pyproject-metadata"),
    )
)

PACKAGE = {
    "__init__.py": '''
        """Installed in place."""
        from .part import Thing
        __version__ = "1"

        def __getattr__(name):
            if name == "late":
                import importlib
                return importlib.import_module(".late", __name__)
            raise AttributeError(name)
        ''',
    "part.py": """
        class Thing:
            def method(self):
                return 1

        def outer(number):
            def inner():
                return [1 / each for each in (number,)]
            return inner()
        """,
    "late.py": "VALUE = 'late'\n",
    "broken.py": "import this_does_not_exist\n",
    "fails.py": "from .part import outer\nouter(0)\n",
    "warns.py": "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n",
    "sub/__init__.py": "from ..part import Thing\n",
    "sub/leaf.py": "from . import Thing\n",
    "data/text.txt": "some data\n",
}

NATIVE = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1};
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
"""

PROJECT = """
[project]
name = "{name}"
version = "1.0"
requires-python = ">=3.11"

[build-system]
requires = [{requires}]
build-backend = "{backend}"
"""


def projects() -> dict[str, tuple[dict[str, str], list[str]]]:
    """{name: (files, options of the installation)}."""
    found: dict[str, tuple[dict[str, str], list[str]]] = {}

    def project(
        name: str,
        backend: str,
        more: str = "",
        source: str = "src",
        options: tuple[str, ...] = (),
        **files: str,
    ) -> None:
        inside = f"{source}/{name}" if source else name
        content = {f"{inside}/{path}": textwrap.dedent(text).lstrip() for path, text in PACKAGE.items()}
        content["pyproject.toml"] = PROJECT.format(name=name, requires="", backend=backend) + textwrap.dedent(
            more
        )
        content.update({path.replace("__", "/"): textwrap.dedent(text) for path, text in files.items()})
        found[name] = (content, list(options))

    for mode in ("lenient", "strict", "compat"):
        option = ("--config-settings-package", f"in_place_setuptools_{mode}:editable_mode={mode}")
        project(f"in_place_setuptools_{mode}", "setuptools.build_meta", options=option)
        flat = f"in_place_setuptools_{mode}_flat"
        project(
            flat,
            "setuptools.build_meta",
            f'[tool.setuptools]\npackages = ["{flat}", "{flat}.sub"]\n',
            source="",
            options=("--config-settings-package", f"{flat}:editable_mode={mode}"),
        )
    project("in_place_hatch", "hatchling.build")
    project("in_place_hatch_exact", "hatchling.build", "[tool.hatch.build]\ndev-mode-exact = true\n")
    project("in_place_flit", "flit_core.buildapi", '[tool.flit.module]\nname = "in_place_flit"\n')
    found["in_place_flit"][0]["pyproject.toml"] = found["in_place_flit"][0]["pyproject.toml"].replace(
        'version = "1.0"', 'dynamic = ["version", "description"]'
    )
    project(
        "in_place_poetry",
        "poetry.core.masonry.api",
        '[tool.poetry]\npackages = [{include = "in_place_poetry", from = "src"}]\n',
    )
    project("in_place_pdm", "pdm.backend", "[tool.pdm.build]\npackage-dir = 'src'\n")
    project(
        "in_place_pdm_finder",
        "pdm.backend",
        "[tool.pdm.build]\npackage-dir = 'src'\neditable-backend = 'editables'\n",
    )
    cmake = """
        cmake_minimum_required(VERSION 3.15...3.30)
        project(native LANGUAGES C)
        find_package(Python COMPONENTS Interpreter Development.Module REQUIRED)
        Python_add_library(_native MODULE native.c WITH_SOABI)
        install(TARGETS _native DESTINATION in_place_scikit_build)
        """
    project(
        "in_place_scikit_build", "scikit_build_core.build", **{"CMakeLists.txt": cmake, "native.c": NATIVE}
    )
    listed = {Path(path).parent for path in PACKAGE}
    python = ""
    for folder in sorted(listed):
        sources = [f"src/in_place_meson/{path}" for path in PACKAGE if Path(path).parent == folder]
        python += f"py.install_sources({sources}, subdir: '{Path('in_place_meson') / folder}')\n"
    meson = (
        "project('in_place_meson', 'c', version: '1.0')\n"
        "py = import('python').find_installation(pure: false)\n"
        "py.extension_module('_native', 'native.c', install: true, subdir: 'in_place_meson')\n" + python
    )
    project("in_place_meson", "mesonpy", **{"meson.build": meson, "native.c": NATIVE})
    return found


def modules(environment: Path) -> list[str]:
    """The modules of all projects that an environment was made with; no folder of it lists them all."""
    names = []
    for name in sorted(path.name for path in (environment / "projects").glob("in_place_*")):
        inner = {path.removesuffix(".py").replace("/", ".") for path in PACKAGE if path.endswith(".py")} | {
            "_native"
        }
        names += [name, *sorted(f"{name}.{each.removesuffix('.__init__')}" for each in inner - {"__init__"})]
    return names


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# Its loader comes with a hook in front of `sys.path_hooks`, which is then asked about every folder of the
# process: an environment of its own, so that the others are compared without it.
HOOKED = ("in_place_meson",)


def install(python: Path, folder: Path, uv: str, *, hooked: bool) -> list[str]:
    """Write the projects below `folder` and install them; gives the names of those that could not be built.

    `hooked`: those that come with a hook of their own, or all others.
    """
    failed = []
    variables = clean_environment(folder, PATH=f"{python.parent}:/usr/local/bin:/usr/bin:/bin")
    for name, (files, options) in projects().items():
        if (name in HOOKED) != hooked:
            continue
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        write(place, files)
        command = [
            uv,
            "pip",
            "install",
            "-q",
            "--python",
            str(python),
            "--no-build-isolation",
            "--no-deps",
            *options,
        ]
        done = subprocess.run([*command, "-e", str(place)], env=variables, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr[-600:]}", file=sys.stderr)
            failed.append(name)
    # As installed distributions have it; otherwise the first run differs from the second, Velo or not.
    subprocess.run([str(python), "-m", "compileall", "-q", str(folder)], env=variables, check=False)
    return failed
