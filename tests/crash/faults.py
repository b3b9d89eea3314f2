# SPDX-License-Identifier: Apache-2.0
"""The numbers of shim.c: classes of operations, and what can happen to one of them."""

CREATE, WRITE, FLUSH, NAME, MODE = 1, 2, 4, 8, 16
ALL = CREATE | WRITE | FLUSH | NAME | MODE
NOTHING, CUT, KILL, FAIL = range(4)
