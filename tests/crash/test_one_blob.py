# SPDX-License-Identifier: Apache-2.0
"""Many processes store the same content at once, are killed at it, and others read it all the while."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.crash.judge import Promises, examine
from tests.support.stores import LIMIT, digest_of, start, temporaries
from velo_import.store.layout import Store

WRITE = """
from velo_import.store import leases
from velo_import.store.blobs import Blobs
path = Path(sys.argv[2])
for turn in range(int(sys.argv[3])):
    with leases.shared(store):
        blob = Blobs(store).put_file(path)
        with PackWriter(store, label="one", kind="content") as writer:
            writer.add(path.read_bytes())
            pack = writer.seal()
        with Catalog.open(store) as catalog, catalog.write() as changes:
            changes.put_pack(pack)
            changes.put_loose(blob.digest, blob.size)
    print(pack.id, os.stat(pack.path).st_ino, flush=True)
"""
# It ends when its input does; from the first time on, all of it has to be there every time.
READ = """
import select
from velo_import.store.blobs import Blobs
digest = bytes.fromhex(sys.argv[2])
reads = 0
inodes = set()
while not select.select([0], [], [], 0)[0]:
    try:
        Blobs(store).read(digest)
        (path,) = store.packs.glob("*/*.pack")
        with open_pack(path) as file:
            file.read(file.find(digest))
            inodes.add(file.stamp.ino)
    except (StoreMissing, ValueError):
        assert not reads, "it was there"
    else:
        reads += 1
print(reads, len(inodes))
"""


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.crash)])
def test_writers_of_one_blob_are_killed_and_readers_notice_nothing(tmp_path: Path, kills: int) -> None:
    content = random.Random(5).randbytes(400_000)
    source = tmp_path / "source"
    source.write_bytes(content)
    home = tmp_path / "home"
    store = Store.open(home, create=True)
    chance = random.Random(6)
    readers = [start(READ, home, digest_of(content).hex(), stdin=subprocess.PIPE) for _ in range(2)]
    first = start(WRITE, home, str(source), "1")
    said = {first.communicate(timeout=LIMIT)[0].strip()}
    writers = [start(WRITE, home, str(source), "1000000") for _ in range(4)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 0.15))
        writers.append(start(WRITE, home, str(source), "1000000"))
        writer = writers.pop(chance.randrange(4))
        writer.kill()
        said.update(writer.communicate(timeout=LIMIT)[0].split("\n")[:-1])
    for writer in writers:
        writer.kill()
        said.update(writer.communicate(timeout=LIMIT)[0].split("\n")[:-1])
    for reader in readers:
        output, errors = reader.communicate(input="\n", timeout=LIMIT)
        assert reader.returncode == 0, errors
        reads, inodes = map(int, output.split())
        assert reads
        assert inodes == 1, "manifests refer to the pack by its inode"

    assert len(said) == 1
    promised = Promises({digest_of(content).hex()}, set(), True)
    assert examine(home, promised).problems == []
    store.remove_leftovers(older_than=-1)
    assert temporaries(home) == []
