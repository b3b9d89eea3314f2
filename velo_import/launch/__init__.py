# SPDX-License-Identifier: Apache-2.0
"""Starting programs under Velo: the child's environment (a pure function), then exec.

`execute`, `environment` and `injection` are start-up code: they import `os`, `sys` and nothing that Python
has not loaded anyway. Leaves serving modules to the hook, and learning to ingest.
"""
