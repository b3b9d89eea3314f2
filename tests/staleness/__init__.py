# SPDX-License-Identifier: Apache-2.0
"""Never stale, tried at random: a tree of modules is changed in all the ways in which trees change, and after
each change a plain and an accelerated Python must see the same.

world.py knows the tree and how it changes, probe.py is the program that looks at it, arms.py runs it in
processes that start anew, that were forked, and that have been running for long.
"""
