# SPDX-License-Identifier: Apache-2.0
"""`velo ingest`, `status`, `manifest`, `store`, `explain`: what was learned can be seen, and asked about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support import interpreters
from tests.support.running import Velo
from tests.support.tree import Tree
from velo_import.format.manifest import decode, encode

APP = {
    "app.py": "import shop.cart; print(shop.cart.total)",
    "shop/__init__.py": "",
    "shop/cart.py": "total = 3",
    "notes.txt": "no code",
}


@pytest.fixture
def app(tree: Tree) -> Tree:
    """A small project, ingested."""
    return tree.write(APP).ingest()


def test_ingest_says_what_it_did(velo: Velo, tree: Tree) -> None:
    """Files, modules, blobs, shared bytes, time and rate; the manifest's path last."""
    tree.write(APP)

    result = velo.ingest()
    first = result.stdout.splitlines()

    assert result.stderr == "", "progress is for people, not for pipes"
    assert [line.split()[0] for line in first] == [
        "target",
        "files",
        "modules",
        "blobs",
        "content",
        "time",
        "manifest",
    ]
    assert "files/s" in first[5]
    assert Path(first[6].split(maxsplit=1)[1]).is_file()


def test_ingest_json_has_every_figure(velo: Velo, tree: Tree) -> None:
    """Scripts read the same numbers; a second ingest of an unchanged tree says so."""
    tree.write(APP)

    first = velo.ingest(None, "--json").json
    second = velo.ingest(None, "--json").json

    promised = {
        "schema",
        "target",
        "manifest",
        "files",
        "modules",
        "blobs",
        "shared_bytes",
        "seconds",
        "files_per_second",
    }
    assert promised <= set(first)
    assert (first["unchanged"], second["unchanged"]) == (False, True)
    assert second["files"] == first["files"]


def test_ingest_writes_a_manifest_that_run_takes(velo: Velo, tree: Tree) -> None:
    """`-o app.velo`, then `velo run --manifest app.velo`."""
    tree.write(APP)
    output = velo.folder / "app.velo"
    assert velo.ingest(None, "--output", str(output)).stdout.endswith(f"{output}\n")

    result = velo.run("app.py", flags=["--manifest", str(output)])

    assert result.answer == ("3\n", "", 0)
    assert result.served > 0


@pytest.mark.parametrize("target", ["no/such/folder", "/etc/passwd"])
def test_ingest_refuses_what_is_no_folder(velo: Velo, target: str) -> None:
    """A clear error with a hint, and no half-made manifest."""
    result = velo.command("ingest", target)

    assert result.code in (1, 2)
    assert result.stderr.startswith("error: no") and "\nhint: " in result.stderr
    assert not list(velo.home.rglob("*.velo"))


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_ingest_refuses_what_is_no_python(velo: Velo, tree: Tree, python: str) -> None:
    """The interpreter is asked, and its silence is an answer."""
    tree.write(APP)
    result = velo.command("ingest", "--python", python, velo.cwd)

    assert result.code in (1, 2)
    assert "\nhint: " in result.stderr


def test_status_before_anything(velo: Velo) -> None:
    """No store is exit code 10, not a traceback and not an empty table."""
    result = velo.command("status")

    assert result.code == 10
    assert result.stderr.startswith(f"error: there is no store in {velo.home}\nhint: ")


def test_status_lists_environments(velo: Velo, app: Tree) -> None:
    """One line for each manifest: environment, build, modules, packs, size, age."""
    text = velo.command("status").stdout
    document = velo.command("status", "--json").json

    assert f"store  {velo.home}\n" in text
    assert str(velo.python.parents[1]) in text
    manifest = document["manifests"][0]
    assert {"key", "layer", "prefix", "build", "modules", "packs", "bytes", "updated", "exists"} <= set(
        manifest
    )
    assert manifest["modules"] >= 3
    assert document["total"] == sum(document["sizes"].values()) > 0
    assert document["problem"] == ""


def test_store_path_needs_no_store(velo: Velo) -> None:
    """It answers "where would it be" as well."""
    assert velo.command("store", "path").answer == (f"{velo.home}\n", "", 0)
    assert velo.command("store", "path", "--json").json["path"] == str(velo.home)


def test_store_size_adds_up(velo: Velo, app: Tree) -> None:
    """Part by part, and in total."""
    document = velo.command("store", "size", "--json").json

    assert set(document["parts"]) == {
        "cas_store",
        "packs",
        "meta.db",
        "manifests",
        "indexes",
        "roots",
        "quarantine",
        "pool",
        "tenants",
        "run",
    }
    assert document["total"] == sum(document["parts"].values())
    assert velo.command("store", "size").stdout.splitlines()[-1].startswith("total")


def test_store_size_in_detail_accounts_for_every_block(velo: Velo, tree: Tree) -> None:
    """As `du` counts: each row is content, what is left of it, and what storing it costs."""
    tree.write({**APP, "words.txt": "the same words again and again\n" * 500, "library.so": "x" * 300_000})
    velo.ingest()
    rename = velo.home / "cas_store" / "v1" / "not-a-digest"
    rename.write_text("somebody put it there")

    document = velo.command("store", "size", "--detail", "--json").json
    table = velo.command("store", "size", "--detail").stdout

    rows = {row["name"].partition(":")[0]: row for row in document["detail"]}
    everything = {path.stat().st_ino: path.stat().st_blocks * 512 for path in velo.home.rglob("*")}
    everything[velo.home.stat().st_ino] = velo.home.stat().st_blocks * 512
    assert document["total"] == sum(row["disk"] for row in rows.values()) == sum(everything.values())
    assert rows["files"]["content"] == rows["files"]["stored"] == 300_000
    assert rows["packed content"]["stored"] < 2000 < 15_500 < rows["packed content"]["content"]
    assert rows["bytecode"]["blobs"] > 0
    assert rows["others"]["files"] > 0
    causes = document["overhead"]
    shares = [causes.pop("of_stored"), causes.pop("of_content")]
    assert sum(causes.values()) == document["blobs"]["overhead"]
    assert shares[0] > shares[1] > 0
    assert "overhead of blobs" in table and "bytes for each blob" in table


def test_store_size_in_detail_knows_what_is_there_twice(velo: Velo, app: Tree) -> None:
    """A blob that is a file and lies in a pack as well; a pack that cannot be read is named."""
    packs = list(velo.home.glob("packs/v1/*/*.pack"))
    before = velo.command("store", "size", "--detail", "--json").json["stored_twice"]
    digest = blake3(b"no code").hexdigest()
    loose = velo.home / "cas_store" / "v1" / digest[:2] / digest[2:4] / digest
    loose.parent.mkdir(parents=True)
    loose.write_bytes(b"no code")
    other = packs[0].with_name("f" * 64 + ".pack")
    other.write_bytes(b"no pack")

    document = velo.command("store", "size", "--detail", "--json").json
    result = velo.command("store", "size", "--detail")

    assert document["stored_twice"] == {"blobs": before["blobs"] + 1, "bytes": before["bytes"] + 7}
    assert document["unreadable"] == [str(other)]
    assert f"stored more than once: {before['blobs'] + 1} blobs" in result.stdout
    assert f"{other} is damaged" in result.stderr


def test_manifest_list_and_stats(velo: Velo, app: Tree) -> None:
    """Which there are, and what they hold."""
    listed = velo.command("manifest", "list", "--json").json["manifests"]
    key = listed[0]["key"]
    measured = velo.command("manifest", "stats", key, "--json").json["manifests"][0]

    assert [entry["layer"] for entry in listed] == ["base"]
    assert listed[0]["problem"] is None
    assert key in velo.command("manifest", "list").stdout
    assert measured["modules"] == listed[0]["modules"]
    assert str(velo.cwd) in {root["path"] for root in measured["roots"]}
    assert "bytecode bytes" in velo.command("manifest", "stats", str(velo.python.parents[1])).stdout


def test_manifest_query_knows_modules_and_paths(velo: Velo, app: Tree) -> None:
    """By name as a program imports it, and by path; what is in none is named, with exit code 1."""
    by_name = velo.command("manifest", "query", "shop.cart", "shop", "--json").json["found"]
    by_path = velo.command("manifest", "query", str(app / "shop/cart.py"), "--json").json["found"]
    missing = velo.command("manifest", "query", "shop.cart", "shop.till")

    assert [(each["module"], Path(each["file"]).name) for each in by_name] == [
        ("shop.cart", "cart.py"),
        ("shop", "__init__.py"),
    ]
    assert by_path[0]["module"] == "shop.cart"
    assert by_path[0]["digest"].startswith("blob:") and len(by_path[0]["digest"]) == 69
    assert missing.code == 1
    assert "not in any manifest: shop.till" in missing.stderr


def test_what_is_no_manifest_is_refused(velo: Velo, app: Tree) -> None:
    """A wrong file, a truncated one, a name that is none: exit code, message, hint; list goes on."""
    path = next(velo.home.rglob("base.velo"))
    damaged = velo.folder / "damaged.velo"
    damaged.write_bytes(path.read_bytes()[:-100])

    for which, code in ((app / "notes.txt", 12), (damaged, 12), ("nothing-like-it", 2)):
        result = velo.command("manifest", "stats", which)
        assert result.code == code, result.stderr
        assert "\nhint: " in result.stderr

    path.chmod(0o600)
    path.write_bytes(b"VELOMNFT")
    listed = velo.command("manifest", "list", "--json").json["manifests"]
    assert str(path) in listed[0]["problem"]
    assert velo.command("status").code == 0


def test_explain_names_manifest_pack_and_check(velo: Velo, app: Tree) -> None:
    """The user's question: who serves this module, and on what grounds?"""
    answer = velo.command("explain", "--python", velo.python, "shop.cart", "--json").json

    assert (answer["module"], answer["served_by"], answer["reason"]) == ("shop.cart", "velo", None)
    assert answer["origin"] == str(app / "shop/cart.py")
    assert answer["manifest"].endswith("/base.velo")
    assert answer["pack"].endswith(".pack")
    assert answer["check"] == "stat"
    assert velo.command("explain", "--python", velo.python, app / "shop/cart.py", "--json").json == answer


def test_a_project_is_found_by_its_folder(velo: Velo, app: Tree) -> None:
    """Its manifest is the interpreter's, which nobody has to know."""
    by_folder = velo.command("manifest", "stats", app.folder, "--json").json["manifests"]

    assert by_folder == velo.command("manifest", "stats", "--json").json["manifests"]
    assert velo.command("manifest", "query", "--manifest", app.folder, "shop.cart").code == 0
    assert velo.command("manifest", "stats", app.folder / "shop").code == 2


@pytest.mark.parametrize("command", [["query", "shop.cart"], ["stats"]])
def test_a_damaged_manifest_does_not_hide_the_others(velo: Velo, app: Tree, command: list[str]) -> None:
    """Unless it is the one that was asked for."""
    good = next(velo.home.rglob("*.velo"))
    bad = good.parents[1] / "cpython-399-other" / "base.velo"
    bad.parent.mkdir()
    bad.write_bytes(good.read_bytes()[:300])

    seen = velo.command("manifest", *command)
    asked = velo.command("manifest", "stats", bad)

    assert seen.code == 0 and str(good) in seen.stdout
    assert seen.stderr.startswith(f"warning: {bad}: ") and "\nhint: " in seen.stderr
    assert asked.code == 12


def test_explain_gives_the_reason(velo: Velo, app: Tree) -> None:
    """Edited, built-in, unknown: each has its reason; what Python cannot find is exit code 1."""
    app.write({"shop/cart.py": "total = 4000"})
    edited = velo.command("explain", "--python", velo.python, "shop.cart", "--json").json
    builtin = velo.command("explain", "--python", velo.python, "sys", "--json").json
    unknown = velo.command("explain", "--python", velo.python, "shop.till")

    assert (edited["served_by"], builtin["served_by"]) == ("python", "python")
    assert edited["reason"] and builtin["reason"]
    assert unknown.code == 1
    assert "python does not find it" in unknown.stdout


def test_explain_says_what_to_do_about_a_pack_that_is_not_used(velo: Velo, app: Tree) -> None:
    """The reason alone would send people to look for a file that is there."""
    for path in velo.home.rglob("*.pack"):
        os.utime(path)

    told = velo.command("explain", "--python", velo.python, "shop.cart", "--json").json

    assert (told["served_by"], told["reason"]) == ("python", "pack missing")
    assert "velo doctor" in told["hint"] and "velo ingest" in told["hint"]


def test_explain_names_a_manifest_of_another_build(velo: Velo, app: Tree) -> None:
    """It is passed over in silence when programs start, so it has to be said here."""
    made = next(velo.home.rglob("*.velo"))
    manifest = decode(made.read_bytes())
    other = velo.folder / "other.velo"
    other.write_bytes(encode(manifest._replace(build=manifest.build._replace(cache_tag="cpython-399"))))

    told = velo.command("explain", "--python", velo.python, "--manifest", other, "shop.cart", "--json").json
    own = velo.command("explain", "--python", velo.python, "--manifest", made, "shop.cart", "--json").json

    assert f"{other} is for cpython-399-" in told["hint"] and told["build"] in told["hint"]
    assert own["served_by"] == "velo" and "hint" not in own


def test_explain_knows_which_pythons_can_be_helped(velo: Velo) -> None:
    """A hint to run the program once would lead nowhere."""
    strangers = {each.name: each for each in interpreters.foreign()}
    if "3.10" not in strangers:
        pytest.skip("no Python 3.10 here")
    told = velo.command("explain", "--python", strangers["3.10"].resolve(), "json")

    assert "hint" in told.stdout and "3.11 or later" in told.stdout


def test_explain_survives_a_noisy_module(velo: Velo, tree: Tree) -> None:
    """A parent package that prints, or fails, does not garble the answer."""
    tree.write(
        {
            "noisy/__init__.py": "print('hello')",
            "noisy/a.py": "",
            "broken/__init__.py": "1 / 0",
            "broken/a.py": "",
        }
    )

    assert velo.command("explain", "--python", velo.python, "noisy.a", "--json").json["module"] == "noisy.a"
    broken = velo.command("explain", "--python", velo.python, "broken.a")
    assert broken.code == 1
    assert "ZeroDivisionError" in broken.stdout


def test_explain_without_python_says_so(velo: Velo) -> None:
    """A wrong --python is the user's to mend."""
    result = velo.command("explain", "--python", "/no/such/python", "json")

    assert result.code == 2
    assert "\nhint: name an interpreter with --python" in result.stderr


def test_explaining_is_not_learning(velo: Velo, tree: Tree) -> None:
    """A question leaves nothing behind."""
    tree.write(APP)
    velo.home.mkdir(mode=0o700)
    velo.command("explain", "--python", velo.python, "shop.cart")
    velo.wait_learned()

    assert not list(velo.home.rglob("*.velo"))
