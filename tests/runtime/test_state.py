"""What a peer keeps on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeshard_p2p.core.records import LinkFigures, UnitTimes
from edgeshard_p2p.runtime.state import (
    Profile,
    State,
    StateError,
    alone_on_this_machine,
    default_name,
)
from tests.runtime.waiting import until

TIMES = (UnitTimes(1, 10, 20, 30), UnitTimes(2, 11, 22, 33))
PROFILE = Profile(TIMES, TIMES, 7_000)
DAMAGED = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"install_id": 5, "generation": 2}',
           b'{"install_id": "zz", "generation": 2}',
           b'{"install_id": "0123456789abcdef", "generation": -1}']  # fmt: skip


def test_each_start_is_a_generation_of_the_same_install(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        state = State(tmp_path / "made" / "here")
        lives.append(state.begin_life())
        state.close()
    assert [life.generation for life in lives] == [1, 2, 3]
    assert len({life.install_id for life in lives}) == 1
    assert default_name(lives[0].install_id).endswith(lives[0].install_id[:4])


def test_a_generation_heard_of_is_surpassed(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert [state.begin_life(at_least=9).generation, state.begin_life().generation] == [9, 10]
    assert state.begin_life(at_least=3).generation == 11
    state.close()


def test_two_installs_differ(tmp_path: Path) -> None:
    lives = []
    for name in ("a", "b"):
        state = State(tmp_path / name)
        lives.append(state.begin_life())
        state.close()
    assert lives[0].install_id != lives[1].install_id


def test_a_directory_in_use_is_named(tmp_path: Path) -> None:
    state = State(tmp_path)
    with pytest.raises(StateError, match=rf"another peer runs .*{tmp_path}.*--state-dir"):
        State(tmp_path)
    state.close()
    State(tmp_path).close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgeshard_p2p.runtime.state import State; "
        "state = State(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match="another peer runs"):
            State(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    State(tmp_path).close()


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    (tmp_path / "links.json").write_bytes(content)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "key.json").write_bytes(content)
    state = State(tmp_path)
    assert state.begin_life().generation == 1
    assert len(state.begin_life().install_id) == 16
    assert (state.links(), state.profile("key")) == ((), None)
    state.save_links((LinkFigures("b", 1, 0, 1),))
    state.save_profile("key", PROFILE)
    assert (len(state.links()), state.profile("key")) == (1, PROFILE)
    state.close()


def test_figures_that_cannot_be_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "key.json").write_text('{"decode": [], "prefill": [[1, 0, 0, 0]]}')
    (tmp_path / "links.json").write_text('[["b", 0, 0, 0]]')
    state = State(tmp_path)
    assert (state.links(), state.profile("key")) == ((), None)
    state.close()


def test_links_are_merged_by_name(tmp_path: Path) -> None:
    state = State(tmp_path)
    b, c, newer = LinkFigures("b", 1, 0, 1), LinkFigures("c", 2, 0, 2), LinkFigures("b", 3, 0, 3)
    state.save_links((c, b))
    state.save_links((newer,))
    assert state.links() == (newer, c)
    state.close()


def test_what_a_pass_takes_is_kept_by_processors_at_the_start(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.pass_us(0.229) == 0
    state.save_pass_us(0.229, 8000)
    state.save_pass_us(0.8, 2000)
    state.save_pass_us(0.229, 9000)
    assert (state.pass_us(0.229), state.pass_us(0.8), state.pass_us(1.0)) == (9000, 2000, 0)
    state.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot use the state directory .*--state-dir"):
        State(tmp_path / "file" / "state")


def test_an_identity_that_cannot_be_written_is_named_and_figures_are_let_go(tmp_path: Path) -> None:
    state = State(tmp_path)
    for name in ("identity.json", "links.json"):
        (tmp_path / name).mkdir()
    (tmp_path / "profiles").write_text("")
    with pytest.raises(StateError, match=r"cannot write .*identity\.json"):
        state.begin_life()
    state.save_links((LinkFigures("b", 1, 0, 1),))
    state.save_profile("key", PROFILE)
    assert (state.links(), state.profile("key")) == ((), None)
    state.close()


def test_one_process_of_a_machine_measures_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "from edgeshard_p2p.runtime.state import alone_on_this_machine\n"
        "with alone_on_this_machine(lambda: print('waits', flush=True)): print('in', flush=True)"
    )
    # NOTE: Python remembers its temporary directory; another process reads the variable.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with alone_on_this_machine(lambda: None):
        other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == b"waits\n"
        except BaseException:
            other.kill()
            raise
    try:
        assert other.communicate(timeout=60)[0] == b"in\n"
    finally:
        other.kill()
    until(lambda: other.poll() is not None, "the other's end")
