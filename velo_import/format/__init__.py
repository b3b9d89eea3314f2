# SPDX-License-Identifier: Apache-2.0
"""Byte layouts: pure functions between bytes and plain data. FORMAT.md is the specification."""
