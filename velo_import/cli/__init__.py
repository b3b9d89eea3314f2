# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per command, `main.py` finds them, `render.py` is the only one that prints."""
