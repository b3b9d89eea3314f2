# SPDX-License-Identifier: Apache-2.0
"""Velo: Python programs start faster, unchanged."""

__version__ = "0.1.0"
