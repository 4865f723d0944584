"""Control groups of the second version, in a tree of plain files: what is written where."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from edgeshard_p2p import control_groups
from edgeshard_p2p.control_groups import (
    CPU,
    MEMORY,
    WEIGHT,
    GroupError,
    Groups,
    cores_allowed,
    memory_left,
    usable_cores,
)


class Tree:
    """/user/session is this process's group; of those above it ``user`` has nobody in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.process = root / "cgroup", root / "process"
        self.process.write_text("0::/user/session\n")
        self.add("", "cpu memory", "1\n")
        self.add("user", "cpu memory", "")
        self.add("user/session", "", "17\n")

    def add(self, name: str, handed_on: str, procs: str) -> None:
        group = self.root / name
        group.mkdir(parents=True)
        (group / "cgroup.subtree_control").write_text(handed_on)
        (group / "cgroup.procs").write_text(procs)

    def groups(self) -> Groups:
        return Groups("device", self.root, self.process)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    def removed(path: Path) -> bool:
        """Groups go with the files that the system shows in them."""
        shutil.rmtree(path)
        return True

    monkeypatch.setattr(control_groups, "_is_removed", removed)
    return Tree(tmp_path)


def test_one_group_holds_both_limits_beside_the_one_that_this_process_is_in(tree: Tree) -> None:
    with tree.groups() as groups:
        assert groups.has(CPU)
        assert groups.has(MEMORY)
        groups.limit_cores(0.25)
        groups.limit_memory(3 * 2**20)
        assert tree.read("user/device/cpu.max") == "2500 10000"
        assert tree.read("user/device/memory.max") == "3145728"
        assert tree.read("user/device/memory.swap.max") == "0"
        for cores, quota in ((0.02, "1000 50000"), (0.03, "1000 33334"), (0.007, "1000 142858")):
            groups.limit_cores(cores)
            assert tree.read("user/device/cpu.max") == quota, "there is a least one"
        groups.limit_cores(None)
        assert tree.read("user/device/cpu.max") == "max 10000"
        assert int(tree.read("user/device/cgroup.procs")) > 1, "a process was put there"
    assert not (tree.root / "user" / "device").exists()


def test_command_joins_the_group_and_goes_on_as_what_it_was_told(tree: Tree) -> None:
    with tree.groups() as groups:
        *words, _ = groups.command()
        assert words[:2] == ["sh", "-c"]
        assert words[2].count(f"{tree.root}/user/device/cgroup.procs") == 1
        assert words[2].endswith('exec "$@"')


def test_controller_is_asked_for_and_without_it_the_next_group_up_is_taken(tree: Tree) -> None:
    (tree.root / "user" / "cgroup.subtree_control").write_text("memory")
    with tree.groups() as groups:
        assert tree.read("user/cgroup.subtree_control") == "+cpu"
        groups.limit_cores(0.5)
        assert tree.read("device/cpu.max") == "5000 10000"
        assert tree.read("device/cpu.weight") == str(WEIGHT)


def test_what_the_system_has_ended_is_counted(tree: Tree) -> None:
    with tree.groups() as groups:
        assert groups.n_killed() == 0
        (tree.root / "user" / "device" / "memory.events").write_text("oom 3\noom_kill 2\n")
        assert groups.n_killed() == 2


def test_machine_without_groups_says_so(tmp_path: Path) -> None:
    with Groups("device", tmp_path / "none", tmp_path / "none") as groups:
        assert groups.why_not == "no control group can be made here"
        assert groups.command() == []
        with pytest.raises(GroupError, match="no control group can be made here"):
            groups.limit_cores(1.0)


def test_process_may_use_what_all_groups_above_it_allow(tree: Tree) -> None:
    assert cores_allowed(tree.root, tree.process) == memory_left(tree.root, tree.process)
    assert cores_allowed(tree.root, tree.process) == math.inf
    assert usable_cores(tree.root, tree.process) >= 1
    (tree.root / "user" / "cpu.max").write_text("5000 20000\n")
    (tree.root / "user" / "session" / "cpu.max").write_text("max 20000\n")
    assert usable_cores(tree.root, tree.process) == 0.25
    (tree.root / "user" / "memory.max").write_text("1000000\n")
    (tree.root / "user" / "memory.stat").write_text("file 500\nanon 300000\n")
    assert memory_left(tree.root, tree.process) == 700_000


def test_first_version_has_a_tree_for_each(tmp_path: Path) -> None:
    (tmp_path / "told").write_text("4:memory:/a\n1:cpu,cpuacct:/b\n0::/\n")
    memory = tmp_path / "memory" / "a"
    memory.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text("1000000\n")
    (memory / "memory.stat").write_text("rss 1\ntotal_rss 400000\n")
    assert memory_left(tmp_path, tmp_path / "told") == 600_000
