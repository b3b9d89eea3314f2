# SPDX-License-Identifier: Apache-2.0
"""The one thing that pyproject.toml cannot say: how the `velo` command is compiled.

Without a C compiler, or where there is no /proc, `velo` is a Python script instead: ten milliseconds slower,
and the same otherwise.
"""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.errors import CCompilerError, PlatformError

from distutils.ccompiler import new_compiler  # isort: skip # setuptools' own, found only after setuptools
from distutils.command.build_scripts import build_scripts  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

SOURCE = "velo_import/_native/velo.c"
SCRIPT = """#!python
import sys
from velo_import.__main__ import main
sys.exit(main())
"""


class BuildLauncher(build_scripts):
    """Compiles `velo`, or writes the script that stands in for it."""

    def get_source_files(self) -> list[str]:
        return [SOURCE]

    def run(self) -> None:
        self.mkpath(self.build_dir)
        target = Path(self.build_dir, "velo")
        try:
            if not sys.platform.startswith("linux"):
                raise PlatformError("there is no /proc here")
            compiler = new_compiler()
            customize_compiler(compiler)
            made = self.get_finalized_command("build").build_temp
            objects = compiler.compile([SOURCE], output_dir=made, extra_postargs=["-O2", "-Wall", "-Wextra"])
            compiler.link_executable(objects, "velo", output_dir=self.build_dir)
        except (CCompilerError, PlatformError, OSError) as error:
            self.warn(f"velo will be a Python script: {error}")
            target.write_text(SCRIPT)
        target.chmod(0o755)


setup(scripts=[SOURCE], cmdclass={"build_scripts": BuildLauncher})
