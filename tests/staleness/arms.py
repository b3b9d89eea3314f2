# SPDX-License-Identifier: Apache-2.0
"""The processes that look: for plain and accelerated Python one that is forked for each look, one that grows
old, and new ones; and what they must agree on.

Knows the orders of probe.py and the variables of a start. The surprise: where cached bytecode is in use,
plain Python itself can be wrong, and so it can about a folder that it has listed before. Then there is a
third answer, the truth: plain Python that has forgotten its listings and reads every source. Velo may be
right where plain Python is wrong, and must agree with one of the two on everything.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.running import LIMIT, Velo

PROBE = Path(__file__).with_name("probe.py")
Seen = Mapping[str, Mapping[str, Any]]


class Talk:
    """One process of probe.py and its answers."""

    def __init__(self, velo: Velo, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [velo.python, str(PROBE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=velo.user,
            env=dict(environment),
            text=True,
        )

    def ask(
        self,
        do: str,
        path: Sequence[str],
        names: Sequence[str],
        *,
        forget: bool = False,
        truth: bool = False,
    ) -> dict[str, Any]:
        order = {"do": do, "path": path, "names": names, "forget": forget, "truth": truth}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.give_up("it is gone")
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.give_up("no answer")
        answer: dict[str, Any] = json.loads(line)
        assert "died" not in answer, answer
        return answer

    def give_up(self, why: str) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        raise AssertionError(f"{why}: code {self.process.returncode}, {self.process.stderr.read()}")

    def end(self) -> str:
        """Let it end by itself; gives what it complained about."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        complaints = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return complaints


class Arms:
    """Both Pythons over one store.

    Args:
        writes: whether Python may write and read cached bytecode.
        check: VELO_CHECK.
    """

    def __init__(self, velo: Velo, writes: bool, check: str) -> None:
        self.velo = velo
        self.writes = writes
        self.check = check
        self.served = self.images = 0
        told = velo.command("env", "--json")
        assert told.code == 0, told.stderr
        self.injection: str = json.loads(told.stdout)["PYTHONPATH"]
        self.talks: dict[str, Talk] = {}

    def environment(self, accelerated: bool, *, learns: bool = False) -> dict[str, str]:
        variables: dict[str, str | None] = {
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": None if self.writes else "1",
        }
        if not accelerated:
            return self.velo.plain_environment(**variables)
        variables |= {"PYTHONPATH": self.injection, "VELO_CHECK": self.check}
        if not learns:
            variables["VELO_READONLY"] = "1"
        return self.velo.velo_environment(**variables)

    def talk(self, name: str) -> Talk:
        """The process of this name, `plain-...` or `velo-...`, started when it is first needed."""
        if name not in self.talks:
            self.talks[name] = Talk(self.velo, self.environment(name.startswith("velo")))
        return self.talks[name]

    def restart(self) -> None:
        """End all processes: the next ones see what was learned and what `.pth` files say now."""
        complaints: dict[str, dict[str, str]] = {"velo": {}, "plain": {}}
        while self.talks:
            arm, _, kind = (full := min(self.talks)).partition("-")
            complaints[arm][kind] = self.talks.pop(full).end()
        for kind, complaint in complaints["velo"].items():
            assert complaint == complaints["plain"].get(kind, ""), kind

    def once(
        self, accelerated: bool, path: Sequence[str], names: Sequence[str], *, learns: bool = False
    ) -> Any:
        """A process that starts, looks and ends."""
        talk = Talk(self.velo, self.environment(accelerated, learns=learns))
        answer = talk.ask("again", path, names)
        answer["complaint"] = talk.end()
        return answer

    # -- looks -------------------------------------------------------------------------------------

    def truth(self, path: Sequence[str], names: Sequence[str]) -> Seen:
        answer: Seen = self.talk("plain-forks").ask("fork", path, names, forget=True, truth=True)["seen"]
        return answer

    def compare_new(self, path: Sequence[str], names: Sequence[str], *, learns: bool = False) -> None:
        """Processes that start now."""
        accelerated = self.once(True, path, names, learns=learns)
        plain = self.once(False, path, names)
        assert accelerated["complaint"] == plain["complaint"]
        self.judge("a new process", accelerated, plain, path, names, is_plain_fresh=True)

    def compare_forked(self, path: Sequence[str], names: Sequence[str]) -> None:
        """Processes that started a while ago and import now."""
        accelerated = self.talk("velo-forks").ask("fork", path, names)
        plain = self.talk("plain-forks").ask("fork", path, names)
        self.judge("a forked process", accelerated, plain, path, names, is_plain_fresh=True)

    def compare_old(self, path: Sequence[str], names: Sequence[str], do: str, *, forgets: bool) -> None:
        """Processes that have imported all of it before."""
        accelerated = self.talk("velo-old").ask(do, path, names, forget=forgets)
        plain = self.talk("plain-old").ask(do, path, names, forget=forgets)
        self.judge(f"an old process, {do}", accelerated, plain, path, names, is_plain_fresh=forgets)

    def judge(
        self,
        who: str,
        accelerated: Mapping[str, Any],
        plain: Mapping[str, Any],
        path: Sequence[str],
        names: Sequence[str],
        *,
        is_plain_fresh: bool,
    ) -> None:
        counted = accelerated["counted"]
        assert counted, "the hook is not there"
        assert counted["errors"] == 0, counted
        assert plain["counted"] == {}
        self.served += counted["served"]
        self.images += counted["images"]
        if accelerated["seen"] == plain["seen"]:
            return
        accepted = [plain["seen"]]
        if self.writes or not is_plain_fresh:
            accepted.append(self.truth(path, names))
        wrong = {
            name: {
                key: [seen.get(key), *(each.get(name, {}).get(key) for each in accepted)]
                for key in sorted({*seen, *(key for each in accepted for key in each.get(name, {}))})
                if seen.get(key) not in [each.get(name, {}).get(key) for each in accepted]
            }
            for name in names
            for seen in [accelerated["seen"].get(name, {})]
        }
        wrong = {name: keys for name, keys in wrong.items() if keys}
        assert not wrong, f"{who}: accelerated, then what would be right: {wrong}"
