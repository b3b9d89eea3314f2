# SPDX-License-Identifier: Apache-2.0
"""Outcomes of a suite, read from JUnit's XML and compared. Pure.

A test is known by the name that its runner gives it. Some runners give one name to several tests: their
outcomes are kept together, sorted, so that none can hide behind another.
"""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

RULES = Path(__file__).with_name("differences.toml")
PASSED, SKIPPED, FAILED, ABSENT = "passed", "skipped", "failed", "absent"
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")  # in names made of the repr of something


@dataclass
class Outcomes:
    """What each test of a run came to, and the file that it is in, where the runner says so."""

    results: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def count(self, result: str) -> int:
        return sum(each.split().count(result) for each in self.results.values())


def read_outcomes(report: Path) -> Outcomes:
    """Read a report; what is no XML, because the run was killed, has no outcomes."""
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError):
        return Outcomes()
    together: dict[str, list[str]] = {}
    outcomes = Outcomes()
    for case in root.iter("testcase"):
        name = ADDRESS.sub("0x", "::".join(filter(None, (case.get("classname"), case.get("name")))))
        together.setdefault(name, []).append(_outcome(case))
        if file := case.get("file"):
            outcomes.files[name] = file
    outcomes.results = {name: " ".join(sorted(results)) for name, results in together.items()}
    return outcomes


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return FAILED
    # unittest's runner says so in an attribute as well, and in nothing else for a test without a reason.
    if "skipped" in kinds or case.get("result") == SKIPPED or case.get("status") == "notrun":
        return SKIPPED
    return PASSED


def differing(one: Mapping[str, str], two: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """{test: (its outcome in one, in two)}, where they are not equal."""
    return {
        name: (one.get(name, ABSENT), two.get(name, ABSENT))
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    }


@dataclass
class Seen:
    """All outcomes that a test had, in runs without and with Velo."""

    plain: Counter[str] = field(default_factory=Counter)
    velo: Counter[str] = field(default_factory=Counter)

    @property
    def verdict(self) -> str:
        """Why the outcomes differ.

        `unstable`: plain Python alone has all of them. `once`: with Velo it came up a single time, and
        repeated runs of both kinds agree. `ours`: neither.
        """
        strange = set(self.velo) - set(self.plain)
        if not strange:
            return "unstable"
        repeated = sum(self.velo.values()) - sum(self.velo[each] for each in strange)
        if sum(self.velo[each] for each in strange) == 1 and repeated >= ENOUGH:
            return "once"
        return "ours"


ENOUGH = 4  # runs with Velo, equal to those without, until a single other one is put down to chance


@dataclass(frozen=True)
class Rule:
    """A reviewed difference."""

    reason: str
    suite: str
    test: re.Pattern[str]
    pythons: tuple[str, ...] = ()

    def explains(self, suite: str, python: str, test: str) -> bool:
        is_asked = self.suite == suite and (not self.pythons or python in self.pythons)
        return is_asked and bool(self.test.fullmatch(test))


def read_rules(path: Path = RULES) -> list[Rule]:
    entries = tomllib.loads(path.read_text()).get("difference", [])
    return [
        Rule(each["reason"], each["suite"], re.compile(each["test"]), tuple(each.get("pythons", ())))
        for each in entries
    ]


def reason_for(rules: Collection[Rule], suite: str, python: str, test: str) -> str:
    """The reason why a difference must exist, or nothing."""
    return next((each.reason for each in rules if each.explains(suite, python, test)), "")
