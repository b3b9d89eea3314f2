# SPDX-License-Identifier: Apache-2.0
"""Learning for Node programs (FORMAT.md, section 14), in Python: no line of it runs inside of a program.

Reading order: interpreters (which Nodes are here, and asking one), notes (what programs have left), resolve
(where a `require` leads, and what has to be so still for that), units (a module's text and bytecode, kept),
learning (all of it, for the programs of one folder), trees (all of it, ahead of time), facts (whether what
was learned holds, for those who explain it). What runs inside of programs is node_accel/.
"""
