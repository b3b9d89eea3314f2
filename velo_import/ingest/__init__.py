# SPDX-License-Identifier: Apache-2.0
"""From folders to a manifest: scan, plan, apply; and learning, the same for what one program imported.

Reading order: interpreter (whose folders), scan (what is there), plan (what has to be done, pure), bytecode and
worker (how source becomes code), apply (doing it, publishing once), learn (the same, folder by folder).
"""
