# SPDX-License-Identifier: Apache-2.0
"""Fuzzed parsers: whatever the bytes are, an answer that holds or a refusal of the documented kind, and soon.

parsers.py says what each parser promises, mutate.py makes bytes worse, corpus/ keeps inputs worth trying:
what real writers wrote, and what once reached a line that nothing before had reached. `python -m tests.fuzz`
looks for more.
"""
