# SPDX-License-Identifier: Apache-2.0
"""`velo gc` and `velo store clear`: what people and scripts are told, and what then happens."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.environments import is_there, publish_environment, put_content, used
from tests.support.running import Velo
from tests.support.tree import Tree
from velo_import.store.layout import Store

DAY = 86400.0


@pytest.fixture
def store(velo: Velo) -> Store:
    return Store.open(velo.home, create=True)


def test_a_dry_run_says_what_would_go_and_what_stays_for_whom(velo: Velo, store: Store) -> None:
    publish_environment(store, "venv", range(10))
    put_content(store, range(10, 20))
    result = velo.command("gc", "--grace", "0s")

    assert result.code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["needed", "by", "last", "used", "needs", "alone"]
    assert lines[1][0] == "/venv" and lines[1][-5:] == ["stays,", "its", "folder", "is", "gone"]
    assert ["packs", "that", "nothing", "needs", "1"] in [line[:5] for line in lines]
    assert "hint: `velo gc --yes` removes it" in result.stderr
    assert is_there(store, 15)


def test_yes_removes_it(velo: Velo, store: Store) -> None:
    publish_environment(store, "venv", range(10))
    put_content(store, range(10, 20))
    foreseen = velo.command("gc", "--grace", "0s", "--json").json
    done = velo.command("gc", "--grace", "0s", "--yes", "--json").json

    assert (foreseen["removed"], done["removed"]) == (False, True)
    assert foreseen["freed"] == done["freed"] > 0
    assert done["packs"]["count"] == 1
    assert done["roots"][0]["needs"]["count"] == 10
    assert not is_there(store, 15) and is_there(store, 5)
    assert velo.command("gc", "--grace", "0s").stdout.splitlines()[-1] == "nothing to remove"


def test_unused_environments_go_when_asked(velo: Velo, store: Store) -> None:
    path = publish_environment(store, "old", range(5))
    used(path, 40 * DAY, path.stat().st_mtime)
    publish_environment(store, "new", range(5, 9))

    assert "goes: unused" in velo.command("gc", "--unused-for", "30d").stdout
    done = velo.command("gc", "--grace", "0s", "--unused-for", "30d", "--yes", "--json").json
    assert [root["reason"] for root in done["roots"]] == ["unused", ""]
    assert [is_there(store, number) for number in (1, 6)] == [False, True]


def test_the_limit_of_the_configuration_holds_and_a_flag_beats_it(velo: Velo, store: Store) -> None:
    path = publish_environment(store, "old", range(5))
    used(path, 40 * DAY, path.stat().st_mtime)
    (velo.cwd / "velo.toml").write_text('[store]\nmax_size = "1kB"\n')

    limited = velo.command("gc", "--json").json
    assert (limited["max_size"], limited["roots"][0]["reason"]) == (1000, "over the limit")
    assert limited["over"] > 0
    assert "over its limit" in velo.command("gc").stderr
    assert velo.command("gc", "--max-size", "1GB", "--json").json["roots"][0]["reason"] == ""


def test_forget_gives_up_one(velo: Velo, store: Store) -> None:
    publish_environment(store, "one", [1])
    publish_environment(store, "two", [2])
    velo.command("gc", "--grace", "0s", "--forget", "/one", "--yes")

    assert [is_there(store, number) for number in (1, 2)] == [False, True]
    unknown = velo.command("gc", "--forget", "nobody")
    assert unknown.code == 2
    assert unknown.stderr.startswith("error: nothing in the store is for nobody\nhint: ")


@pytest.mark.parametrize("wish", [("--unused-for", "0s"), ("--max-size", "1kB")])
def test_what_stays_although_more_was_asked_for_says_why(
    velo: Velo, store: Store, wish: tuple[str, str]
) -> None:
    """Somebody may be starting a program from it this very moment."""
    publish_environment(store, "venv", range(5))

    kept = [velo.command("gc", *more, "--json").json["roots"][0]["kept"] for more in (wish, ())]

    assert kept == ["used within the grace", ""]
    assert "stays, used within the grace" in velo.command("gc", *wish).stdout
    assert "goes: " in velo.command("gc", *wish, "--grace", "0s").stdout


@pytest.mark.parametrize("option", ["--unused-for", "--max-size", "--grace"])
def test_what_is_no_amount_is_refused(velo: Velo, store: Store, option: str) -> None:
    result = velo.command("gc", option, "plenty")

    assert result.code == 2
    assert option in result.stderr and "must be a" in result.stderr


def test_a_damaged_manifest_stops_it_with_a_hint(velo: Velo, store: Store) -> None:
    path = publish_environment(store, "venv", [1])
    path.chmod(0o600)
    path.write_bytes(b"VELOMNFT")
    result = velo.command("gc", "--yes")

    assert result.code == 12
    assert str(path) in result.stderr and "\nhint: " in result.stderr


def test_readonly_may_look_and_not_remove(velo: Velo, store: Store) -> None:
    put_content(store, [1])
    readonly: dict[str, str | None] = {"VELO_READONLY": "1"}

    assert velo.command("gc", env=readonly).code == 0
    assert velo.command("gc", "--yes", env=readonly).code == 1
    assert velo.command("store", "clear", "--yes", env=readonly).code == 1
    assert is_there(store, 1)


def test_without_a_store_there_is_nothing_to_collect(velo: Velo) -> None:
    for command in (("gc",), ("store", "clear", "--yes")):
        result = velo.command(*command)
        assert result.code == 10
        assert not velo.home.exists()


# -- with a real environment -----------------------------------------------------------------------


def test_a_manifest_written_elsewhere_is_kept_served_until_it_is_forgotten(velo: Velo, tree: Tree) -> None:
    """`ingest -o`, then the environment is given up: `velo run --manifest` still finds its bytecode."""
    tree.write({"app.py": "import shop\nprint(shop.total)", "shop.py": "total = 3"})
    output = velo.folder / "app.velo"
    assert velo.ingest(None, "--output", str(output)).code == 0
    key = velo.command("gc", "--json").json["roots"][0]["name"]
    velo.command("gc", "--grace", "0s", "--forget", key, "--yes")
    kept = velo.command("gc", "--json").json["roots"]
    assert [(root["kind"], root["name"]) for root in kept] == [("registered", str(output))]

    result = velo.run("app.py", flags=["--manifest", str(output)])
    assert result.answer == ("3\n", "", 0) and result.served > 0

    done = velo.command("gc", "--grace", "0s", "--forget", str(output), "--yes", "--json").json
    assert done["freed"] > 0


def test_what_a_collection_leaves_is_served_and_an_ingest_sees_no_change(velo: Velo, tree: Tree) -> None:
    tree.write({"app.py": "import shop\nprint(shop.total)", "shop.py": "total = 3"})
    velo.ingest(None)
    velo.command("gc", "--grace", "0s", "--yes")

    result = velo.run("app.py")
    assert result.answer == ("3\n", "", 0) and result.served > 0
    assert velo.ingest(None, "--json").json["unchanged"]


def test_an_environment_that_was_given_up_is_learned_again(velo: Velo, tree: Tree) -> None:
    tree.write({"app.py": "import shop\nprint(shop.total)", "shop.py": "total = 3"})
    velo.ingest(None)
    key = velo.command("gc", "--json").json["roots"][0]["name"]
    velo.command("gc", "--grace", "0s", "--forget", key, "--yes")

    assert velo.run("app.py").answer == ("3\n", "", 0)
    velo.wait_learned()
    again = velo.run("app.py")
    assert again.answer == ("3\n", "", 0) and again.served > 0


def test_a_program_that_runs_goes_on_when_all_it_was_served_from_has_gone(velo: Velo, tree: Tree) -> None:
    """Half of its imports come before the collection, half after it."""
    tree.write(
        {
            "app.py": """
                import os, time
                import before
                open("ready", "w").close()
                while not os.path.exists("go"):
                    time.sleep(0.01)
                import after
                print(before.value + after.value)
            """,
            "before.py": "value = 1",
            "after.py": "value = 2",
        }
    )
    velo.ingest(None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(velo.run, "app.py", env={"VELO_READONLY": "1"})
        try:
            until = time.monotonic() + 30
            while not (tree / "ready").exists() and time.monotonic() < until:
                time.sleep(0.01)
            key = velo.command("gc", "--json").json["roots"][0]["name"]
            done = velo.command("gc", "--grace", "0s", "--forget", key, "--yes", "--json").json
        finally:
            (tree / "go").touch()
        result = running.result()

    assert done["packs"]["count"] > 0 and not list(velo.home.rglob("*.pack"))
    assert result.answer == ("3\n", "", 0) and result.errors == 0 and result.served > 0


def test_a_store_over_its_limit_shrinks_when_something_is_added(velo: Velo, tree: Tree) -> None:
    """`store.max_size` is a limit, not advice: what was not used for longest is given up at once."""
    store = Store.open(velo.home, create=True)
    path = publish_environment(store, "old", range(1000, 1300))
    used(path, 40 * DAY, path.stat().st_mtime)
    tree.write({"app.py": "print(3)", "velo.toml": '[store]\nmax_size = "100kB"\n'})
    result = velo.ingest(None)
    assert "over its limit" in result.stderr

    assert "old" not in os.listdir(store.manifests)
    assert velo.run("app.py").answer == ("3\n", "", 0)


def test_a_limit_that_cannot_be_kept_fails_nobody(velo: Velo, tree: Tree) -> None:
    """What was just ingested is in use; that nothing could go is said once, by `velo gc`."""
    tree.write({"app.py": "print(3)", "velo.toml": '[store]\nmax_size = "1kB"\n'})
    assert velo.ingest(None, "--json").json["freed"] == 0
    assert velo.ingest(None, "--force", "--json").json["freed"] == 0

    assert "over its limit" in velo.command("gc").stderr


def test_clear_removes_everything_velo_wrote(velo: Velo, tree: Tree) -> None:
    tree.write({"app.py": "print(3)"})
    output = velo.folder / "app.velo"
    velo.ingest(None, "--output", str(output))
    foreseen = velo.command("store", "clear")
    assert foreseen.stdout.startswith(f"would remove {velo.home}") and velo.home.exists()

    done = velo.command("store", "clear", "--yes", "--json").json
    assert done["left"] == [] and done["manifests_elsewhere"] == [str(output)]
    assert not velo.home.exists()
    assert output.exists() and velo.run("app.py").answer == ("3\n", "", 0)


def test_clear_leaves_what_is_not_velos(velo: Velo, store: Store) -> None:
    publish_environment(store, "venv", [1])
    (store.home / "notes.txt").write_text("mine")
    done = velo.command("store", "clear", "--yes", "--json").json

    assert done["left"] == ["notes.txt"]
    assert os.listdir(store.home) == ["notes.txt"]


def test_clear_names_environments_that_still_load_velo(velo: Velo, tree: Tree) -> None:
    tree.write({"app.py": "print(3)"})
    velo.ingest(None)
    environment = str(Path(velo.python).parents[1])
    velo.command("enable", environment)
    try:
        result = velo.command("store", "clear", "--yes")
        assert f"hint: `velo disable {environment}`" in result.stderr
    finally:
        velo.command("disable", environment)
