# SPDX-License-Identifier: Apache-2.0
"""The crash rig: programs that write to a store, faults that stop them anywhere, and a judge of what is left.

shim.c stands between a program and its disk; programs.py are the programs, and the server that forks them;
judge.py says what a store lacks; disks.py are file systems whose power can be cut, replay.py is one that
needs no root.
"""
