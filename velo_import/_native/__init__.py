# SPDX-License-Identifier: Apache-2.0
"""C sources and, where a compiler was found, `core`: the native half of the hook (twin: hook/mapping.py), and
`folders`: listings for ingest (twin: host/folders.py)."""
