# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what Velo costs and gains, measured against plain CPython in the same run. Start with
README.md.

Nothing here is imported by Velo, and nothing of Velo is imported here: the tool is driven through its
command line and its environment variables, as a user would drive it.
"""
