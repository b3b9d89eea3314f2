# SPDX-License-Identifier: Apache-2.0
"""Trees of any shape, as plain paths, for tests that hold for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from velo_import.format.tree import EXECUTABLE, FILE, FOLDER, LINK, Entry

ONE, TWO = b"\x11" * 32, b"\x22" * 32

names = st.binary(min_size=1, max_size=3).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
leaf = st.one_of(
    st.tuples(st.sampled_from((FILE, EXECUTABLE)), st.sampled_from((ONE, TWO)), st.integers(0, 3)).map(
        lambda fields: Entry(*fields)
    ),
    st.sampled_from((b"x", b"../y")).map(lambda target: Entry(LINK, target=target)),
    st.just(Entry(FOLDER)),
)


@st.composite
def path_sets(draw: st.DrawFn) -> dict[bytes, Entry]:
    """A few paths, none of which is both a folder and something else."""
    chosen: dict[bytes, Entry] = {}
    for parts in draw(st.lists(st.lists(names, min_size=1, max_size=3), max_size=8)):
        path = b"/".join(parts)
        above = {b"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if not above & set(chosen) and not any(each.startswith(path + b"/") for each in chosen):
            chosen[path] = draw(leaf)
    return chosen
