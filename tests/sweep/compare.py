# SPDX-License-Identifier: Apache-2.0
"""What two runs of the probe saw, compared; and which differences have been reviewed.

Pure. A run is flattened to entries (`aspect`, `key`, text) and lists of lines; a rule of differences.toml
either rewrites the text of the accelerated run or drops entries of both, and counts how often it did. What is
left differs.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RULES = Path(__file__).with_name("differences.toml")
FEW = 4000  # lines beyond what two lists have in common at both ends; comparing more takes minutes

# What no two runs of one program have in common.
MASKS = [
    (re.compile(r"\b0x[0-9a-fA-F]{6,}\b"), "0x"),
    # The folder that run.py gives to each run for its temporary files, and others of that purpose.
    (
        re.compile(r"(?:(?<=/user/)|(?<=/tmp/))(?:[tT][mM][pP][^/\s'\"]+|[a-z0-9_]{8})(?=[/\s'\"]|$)"),
        "TEMPORARY",
    ),
    # Of -X importtime, behind something that was printed without an end of line.
    (re.compile(r"(?<=import time:) +\d+ \| +\d+ (?=\|)"), " "),
]


@dataclass(frozen=True)
class Difference:
    """One thing that two runs do not have in common."""

    aspect: str
    key: str
    plain: str | None
    other: str | None

    @property
    def identity(self) -> tuple[str, str]:
        """What is compared with the noise: the question for an answer, the line itself for a list."""
        return self.aspect, self.key or (self.plain or "") + (self.other or "")


@dataclass(frozen=True)
class Rule:
    """A reviewed difference: why it must exist, and how it is recognised."""

    reason: str
    aspect: re.Pattern[str]
    find: re.Pattern[str]
    by: str | None  # None: the entry is dropped from both runs
    both: bool = False  # a text that is rewritten in both runs


def read_rules(path: Path = RULES) -> list[Rule]:
    """The reviewed list, in the order of the file."""
    document = tomllib.loads(path.read_text())
    rules = []
    for each in document["difference"]:
        unknown = each.keys() - {"reason", "aspect", "rewrite", "by", "drop", "both"}
        if unknown or ("rewrite" in each) == ("drop" in each) or not each["reason"].strip():
            raise ValueError(f"not a reviewed difference: {each}")
        find = each.get("rewrite", each.get("drop"))
        rules.append(
            Rule(
                each["reason"],
                re.compile(each["aspect"]),
                re.compile(find),
                each.get("by", "") if "rewrite" in each else None,
                each.get("both", False),
            )
        )
    return rules


@dataclass(frozen=True)
class Seen:
    """One run, flattened."""

    answers: Mapping[tuple[str, str], str]
    lists: Mapping[str, Sequence[str]]


def masked(text: str) -> str:
    for pattern, by in MASKS:
        text = pattern.sub(by, text)
    return text


def flatten(
    document: Mapping[str, Any], rules: Sequence[Rule] = (), uses: Counter[str] | None = None
) -> Seen:
    """The probe's document with masks and rules applied; to a plain run only those apply that drop.

    `uses` counts by reason how often a rule did something.
    """
    uses = Counter() if uses is None else uses
    answers: dict[tuple[str, str], str] = {}
    lists: dict[str, list[str]] = {}
    for aspect, content in document.items():
        if isinstance(content, list):
            lists[aspect] = [
                line
                for each in content
                if (line := _reviewed(aspect, masked(str(each)), rules, uses)) is not None
            ]
            continue
        for key, value in content.items():
            inner = value if isinstance(value, dict) else {"": value}
            for question, answer in inner.items():
                # What is asked of Python itself has no module for a key.
                name = f"{aspect} {question or (key if aspect == 'system' else '')}".rstrip()
                if (text := _reviewed(name, masked(str(answer)), rules, uses)) is not None:
                    answers[name, key] = text
    return Seen(answers, lists)


def _reviewed(aspect: str, text: str, rules: Sequence[Rule], uses: Counter[str]) -> str | None:
    for rule in rules:
        if not rule.aspect.fullmatch(aspect):
            continue
        if rule.by is None:
            if rule.find.search(text):
                uses[rule.reason] += 1
                return None
        else:
            text, count = rule.find.subn(rule.by, text)
            uses[rule.reason] += count
    return text


def droppers(rules: Iterable[Rule]) -> list[Rule]:
    """Those rules that apply to plain runs, too."""
    return [each for each in rules if each.by is None or each.both]


def differences(plain: Seen, other: Seen) -> list[Difference]:
    """Everything the two do not have in common."""
    found = []
    for key in dict.fromkeys([*plain.answers, *other.answers]):
        one, two = plain.answers.get(key), other.answers.get(key)
        if one != two:
            found.append(Difference(key[0], key[1], one, two))
    for aspect in dict.fromkeys([*plain.lists, *other.lists]):
        for sign, line in _lines(plain.lists.get(aspect, ()), other.lists.get(aspect, ())):
            found.append(Difference(aspect, "", line if sign == "-" else None, line if sign == "+" else None))
    return found


def _lines(one: Sequence[str], two: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The lines in one list only, with `-` or `+`."""
    if one == two:
        return
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    end = 0
    while end < min(len(one), len(two)) - start and one[-1 - end] == two[-1 - end]:
        end += 1
    left, right = one[start : len(one) - end], two[start : len(two) - end]
    if max(len(left), len(right)) > FEW:
        # Too many to align: which lines there are, and how often.
        counted = Counter(left), Counter(right)
        surplus = [("-", line) for line in counted[0] - counted[1]] + [
            ("+", line) for line in counted[1] - counted[0]
        ]
        yield from surplus or [("-", f"another order, beginning with {left[0]}"), ("+", right[0])]
        return
    for line in (
        difflib.ndiff(left, right)
        if max(len(left), len(right)) < 40
        else difflib.unified_diff(left, right, n=0)
    ):
        if line[:1] in "+-" and not line.startswith(("+++ \n", "--- \n")):
            yield line[0], line[2:] if max(len(left), len(right)) < 40 else line[1:]


def without_noise(found: Iterable[Difference], noise: Iterable[Difference]) -> list[Difference]:
    """What two plain runs do not do to each other."""
    loud = {each.identity for each in noise}
    return [each for each in found if each.identity not in loud]
