# SPDX-License-Identifier: Apache-2.0
"""Tests of Velo; a package so that every test file can say `from tests.support import ...`."""
