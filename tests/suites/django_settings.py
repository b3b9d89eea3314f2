# SPDX-License-Identifier: Apache-2.0
"""Django's own settings for its tests, and a runner that also writes outcomes as JUnit does.

Copied beside Django's tests as `velo_suite_settings`; its own runner writes nothing that can be read.
"""

from __future__ import annotations

import os
import unittest
import xml.etree.ElementTree as ElementTree
from typing import Any

from django.test.runner import DiscoverRunner
from test_sqlite import *  # noqa: F403

TEST_RUNNER = "velo_suite_settings.Runner"


class Outcomes(unittest.TextTestResult):
    """Notes every test; a failed part of a test counts as the test's failure."""

    def startTestRun(self) -> None:
        super().startTestRun()
        self.root = ElementTree.Element("testsuite")

    def _note(self, test: Any, *kinds: str) -> None:
        case = ElementTree.SubElement(self.root, "testcase", name=test.id())
        for kind in kinds:
            ElementTree.SubElement(case, kind)

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self._note(test)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "error")

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failure")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(subtest, "failure")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "skipped")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "failure")

    def stopTestRun(self) -> None:
        super().stopTestRun()
        ElementTree.ElementTree(self.root).write(os.environ["VELO_SUITE_REPORT"])


class Runner(DiscoverRunner):
    def get_resultclass(self) -> type[Outcomes]:
        return Outcomes
