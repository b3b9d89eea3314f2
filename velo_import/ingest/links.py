# SPDX-License-Identifier: Apache-2.0
"""What symbolic links say: a program sees through them, whoever makes the tree again needs their text.

Knows one rule: a link to a file keeps the vnode of that file, because imports go through it; a link to a
folder, to nothing, or to content that is left out gets a vnode of its own. A link that changes changes its
folder's stamp, so what is read here belongs to a listing that is either still true or will be taken again.
"""

from __future__ import annotations

import os
import stat

from velo_import.format.manifest import DIRECTORY, NO_DIGEST, SYMBOLIC_LINK, TREE, FileRecord

from .plan import Draft
from .scan import Scan
from .secrets import is_secret
from .selection import EVERYTHING, Selection


def note_links(draft: Draft, scanned: Scan, below: str, selection: Selection = EVERYTHING) -> None:
    """Add to the draft what the links in or below a folder say, without those that the user leaves out."""
    prefix = below.rstrip("/") + "/"
    for folder in scanned.folders:
        place = folder.path.rstrip("/") + "/"
        if not place.startswith(prefix):
            continue
        area = scanned.areas[folder.area]
        below_area = len(area.path.rstrip("/")) + 1
        to_files = (entry.name for entry in folder.files if entry.is_link)
        for name in (*to_files, *folder.links, *folder.others):
            path = place + name
            record = draft.files.get(path)
            if record is not None:
                if not record.flags & DIRECTORY:  # a search path may be a link
                    draft.files[path] = record._replace(link=_text(path))
            elif selection.verdict(path) is False or (area.kind == TREE and is_secret(path[below_area:])):
                continue
            elif text := _text(path):
                # Its own stamp is not kept: the listing it stands in is what can change.
                mode = stat.S_IFLNK | 0o777
                draft.files[path] = FileRecord(path, NO_DIGEST, 0, 0, 0, 0, mode, SYMBOLIC_LINK, text)


def _text(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # gone, or no link: sockets and pipes are listed among broken links
        return ""
