# SPDX-License-Identifier: Apache-2.0
"""Ten programs that start the way real ones do: import, touch what was imported, print what can be
compared.

Each prints a value computed by the package, the package's version, where it lies, and how many of its
modules are loaded. All arms must print the same bytes. The surprise: a program lives in
`<folder>/<name>/main.py`, never in `<name>.py`, which would shadow the package that it is about.
"""

from __future__ import annotations

from pathlib import Path

# Appended to every program. The count catches an accelerator that loads more or fewer modules than Python.
_REPORT = """
import sys as _sys
for _name in {packages!r}:
    _package = _sys.modules[_name]
    _loaded = sum(1 for _module in _sys.modules if _module.partition(".")[0] == _name)
    print(_name, getattr(_package, "__version__", "-"), _package.__file__, _loaded)
"""

_DJANGO = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"])
django.setup()
from django.core import management
from django.db import models
from django.contrib.auth.models import User
print(User._meta.db_table, issubclass(User, models.Model), len(management.get_commands()))
"""

_SQLALCHEMY = """
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase):
    pass
class Person(Base):
    __tablename__ = "person"
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
print(select(Person).where(Person.name == "x"))
"""

_MATPLOTLIB = """
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot
print(matplotlib.get_backend(), sorted(matplotlib.pyplot.figure().canvas.get_supported_filetypes()))
"""

_BODIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "boto3": (
        "import boto3\nprint(boto3.session.Session(region_name='eu-west-1').region_name)\n",
        ("boto3", "botocore"),
    ),
    "django": (_DJANGO, ("django",)),
    "fastapi": (
        "import fastapi, uvicorn\n"
        "application = fastapi.FastAPI()\n"
        "@application.get('/')\n"
        "def root() -> dict[str, int]:\n"
        "    return {'answer': 42}\n"
        "configuration = uvicorn.Config(application)\n"
        "print(configuration.port, application.url_path_for('root'))\n",
        ("fastapi", "starlette", "pydantic", "uvicorn"),
    ),
    "pandas": (
        "import pandas\nprint(pandas.DataFrame({'a': [1, 2, 3]}).a.sum())\n",
        ("pandas", "numpy"),
    ),
    "sqlalchemy": (_SQLALCHEMY, ("sqlalchemy",)),
    "sklearn": (
        "import sklearn.linear_model, sklearn.ensemble\n"
        "print(sklearn.linear_model.LinearRegression(), sklearn.ensemble.RandomForestClassifier())\n",
        ("sklearn", "scipy", "numpy"),
    ),
    "sympy": (
        "import sympy\nx = sympy.Symbol('x')\nprint(sympy.diff(sympy.sin(x) ** 2, x))\n",
        ("sympy", "mpmath"),
    ),
    "matplotlib": (_MATPLOTLIB, ("matplotlib", "numpy")),
    "black": (
        "import black\nprint(black.format_str('x=[1,2]', mode=black.Mode()), end='')\n",
        ("black", "blib2to3"),
    ),
    "eight": (
        "import boto3, django, fastapi, pandas, sqlalchemy.orm, sklearn.linear_model, sympy\n"
        "import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot\n"
        "print(pandas.Series([2, 3]).prod(), sympy.Integer(6), django.VERSION[:2])\n",
        ("boto3", "django", "fastapi", "pandas", "sqlalchemy", "sklearn", "sympy", "matplotlib"),
    ),
}

PROGRAMS: dict[str, str] = {
    name: body + _REPORT.format(packages=list(packages)) for name, (body, packages) in _BODIES.items()
}

# Not one of the ten: needs no package, so that the harness itself can be tried anywhere.
STDLIB_PROGRAM = "stdlib"
_STDLIB_BODY = (
    "import argparse, asyncio, email.message, http.client, json, logging.config, unittest, xml.dom.minidom\n"
    "print(json.dumps([1, 2]), len(email.message.Message().keys()))\n"
)
EXTRA: dict[str, str] = {STDLIB_PROGRAM: _STDLIB_BODY + _REPORT.format(packages=["asyncio", "json", "email"])}


def source_of(name: str) -> str:
    return PROGRAMS[name] if name in PROGRAMS else EXTRA[name]


def write_program(folder: Path, name: str) -> Path:
    """Put one program below `folder`; the same text is not written again."""
    script = folder / name / "main.py"
    text = source_of(name)
    if not script.exists() or script.read_text(encoding="utf-8") != text:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(text, encoding="utf-8")
    return script
