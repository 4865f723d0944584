"""Peers are killed, frozen, leave and come back; who asked a question notices nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.e2e.conftest import BLOCK_MIB
from tests.e2e.swarm import DEADLINE_S, Machine, Peer, Swarm, eventually, killed_at_the_end

pytestmark = pytest.mark.timeout(300)

NAMES = ("amy", "ben", "cat", "dan")
PROMPT = "What do they say when one of them falls silent?"
N_TOKENS = 240
"""So many that an answer is far from its end when it is seen to have begun."""
SEEDED = ("--seed", 7, "--temperature", 1.5)


@pytest.fixture(scope="module")
def lasting_swarm(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(machine, tmp_path_factory.mktemp("swarm")) as swarm:
        yield swarm


@pytest.fixture
def swarm(lasting_swarm: Swarm) -> Swarm:
    """Amy takes prompts; any two of the other three can serve them with her."""
    here = {peer.name: peer for peer in lasting_swarm.peers}
    living = {peer.name for peer in lasting_swarm.living()}
    for name in NAMES:
        if name not in living:
            start(lasting_swarm, name, port=here[name].port if name in here else 0)
    eventually(lambda: lasting_swarm.are(**dict.fromkeys(NAMES, "alive")), lasting_swarm.story)
    lasting_swarm.serving_plan()
    return lasting_swarm


def start(swarm: Swarm, name: str, port: int = 0) -> Peer:
    role = "--source" if name == "amy" else "--no-source"
    flags = (role, "--batch", 2, "--min-members", len(NAMES), "--standby")
    half_blocks = 7 if name == "amy" else 5
    return swarm.start(name, *flags, port=port, layers_mib=BLOCK_MIB * half_blocks // 2)


def a_stage(swarm: Swarm) -> Peer:
    """A peer other than amy that has a part in the plan."""
    stages = swarm["amy"].status()["plan"]["stages"]
    return next(swarm[stage["peer"]] for stage in stages if stage["peer"] != "amy")


def asking(swarm: Swarm, *arguments: object) -> subprocess.Popen[str]:
    amy, pipe = swarm["amy"], subprocess.PIPE
    command = ("run", PROMPT, "--raw", "--json", "--max-tokens", N_TOKENS, *amy.client_flags())
    return swarm.machine.popen(*command, *arguments, stdout=pipe, stderr=pipe)


def have_begun(swarm: Swarm, n_requests: int) -> bool:
    requests = swarm["amy"].status()["requests"]
    return len([r for r in requests if r["generated_tokens"] >= 3]) == n_requests


def test_a_stage_is_killed_in_the_middle_of_two_answers(swarm: Swarm) -> None:
    undisturbed = [
        swarm["amy"].run(PROMPT, "--max-tokens", N_TOKENS, *how)["token_ids"]
        for how in ((), SEEDED)
    ]
    with ExitStack() as ends:
        runs = [asking(swarm), asking(swarm, *SEEDED)]
        for run in runs:
            ends.enter_context(killed_at_the_end(run))
        eventually(lambda: have_begun(swarm, len(runs)), swarm.story)
        victim = a_stage(swarm)
        (worker,) = psutil.Process(victim.process.pid).children()
        victim.kill()
        answers = [json.loads(run.communicate(timeout=DEADLINE_S)[0]) for run in runs]
    assert [answer.get("token_ids") for answer in answers] == undisturbed, swarm.story()
    assert all(answer["failovers"] >= 1 for answer in answers)
    assert all(answer["replayed_tokens"] > 0 for answer in answers)
    # Its planner runs in a process of its own, which must not outlive it.
    eventually(lambda: not worker.is_running(), lambda: f"{worker} still runs")
    eventually(lambda: swarm.are(**{victim.name: "dead"}), swarm.story)
    swarm.serving_plan(*(peer.name for peer in swarm.living()))
    eventually(swarm.is_idle, swarm.story)


def test_a_frozen_stage_is_as_good_as_dead_until_it_thaws(swarm: Swarm) -> None:
    undisturbed = swarm["amy"].run(PROMPT, "--max-tokens", N_TOKENS)["token_ids"]
    run = asking(swarm)
    victim = a_stage(swarm)
    with killed_at_the_end(run):
        eventually(lambda: have_begun(swarm, 1), swarm.story)
        victim.process.send_signal(signal.SIGSTOP)
        try:
            answer = json.loads(run.communicate(timeout=DEADLINE_S)[0])
        finally:
            victim.process.send_signal(signal.SIGCONT)
    assert answer.get("token_ids") == undisturbed, swarm.story()
    assert answer["failovers"] >= 1
    eventually(lambda: swarm.are(**dict.fromkeys(NAMES, "alive")), swarm.story)
    (thawed,) = [m for m in swarm["amy"].status()["members"] if m["name"] == victim.name]
    assert thawed["incarnation"] > 0
    eventually(swarm.is_idle, swarm.story)


def test_what_a_loss_will_need_is_here_before_it(swarm: Swarm) -> None:
    seen: list[tuple[Peer, dict[str, set[int]]]] = []

    def settled() -> bool:
        """Who is going to be lost, and what the others hold for that, the same at two looks."""
        victim = a_stage(swarm)
        others = [peer for peer in swarm.living() if peer is not victim]
        held = {peer.name: units for peer in others if (units := standby_of(peer))}
        seen.append((victim, held))
        return bool(held) and seen[-2:-1] == seen[-1:]

    undisturbed = swarm["amy"].run(PROMPT, "--max-tokens", N_TOKENS)["token_ids"]
    eventually(settled, swarm.story)
    victim, held = seen[-1]
    run = asking(swarm)
    with killed_at_the_end(run):
        eventually(lambda: have_begun(swarm, 1), swarm.story)
        victim.kill()
        answer = json.loads(run.communicate(timeout=DEADLINE_S)[0])
    assert answer.get("token_ids") == undisturbed, swarm.story()
    assert answer["failovers"] >= 1
    stages = swarm["amy"].status()["plan"]["stages"]
    used = [
        s["peer"] for s in stages if held.get(s["peer"], set()) & {*range(s["start"], s["end"])}
    ]
    assert used, f"{held}\n{stages}\n{swarm.story()}"


def standby_of(peer: Peer) -> set[int]:
    ranges = peer.status()["self"]["standby_units"]
    return {unit for start, end in ranges for unit in range(start, end)}


def test_the_swarm_tries_itself(swarm: Swarm) -> None:
    amy = swarm["amy"]
    done = amy.ask("selftest")
    assert done.exit_code == 0, f"{done.stdout}\n{done.stderr}\n{swarm.story()}"
    (told,) = done.objects
    assert told["verdict"] == "passed"
    tried = [trial for trial in told["trials"] if trial["tokens"] != "not tried"]
    assert tried, told
    assert {trial["tokens"] for trial in tried} == {"same"}
    assert all(trial["why"] for trial in told["trials"] if trial not in tried)
    assert told["rehearsal"]["tokens"] == "same", f"{told}\n{done.stderr}"
    assert told["rehearsal"]["failovers"] >= 1
    assert amy.status()["settings"].get("pin") == ""
    assert told["plan_after"]
    assert "pinned" not in amy.status()["plan"]["note"]
    eventually(lambda: swarm.are(**dict.fromkeys(NAMES, "alive")), swarm.story)
    eventually(swarm.is_idle, swarm.story)


def test_nothing_is_tried_while_requests_run(swarm: Swarm) -> None:
    run = asking(swarm)
    with killed_at_the_end(run):
        eventually(lambda: have_begun(swarm, 1), swarm.story)
        refused = swarm["amy"].ask("selftest")
    eventually(swarm.is_idle, swarm.story)
    assert refused.exit_code == 1
    assert "requests run at amy" in refused.complaint
    assert "--force" in refused.complaint


def test_ctrl_c_leaves_cleanly(swarm: Swarm) -> None:
    leaver = a_stage(swarm)
    generation = leaver.status()["self"]["generation"]
    assert leaver.interrupt() == 0
    assert "Traceback" not in leaver.log
    eventually(lambda: swarm.are(**{leaver.name: "left"}), swarm.story)
    swarm.serving_plan(*(peer.name for peer in swarm.living()))
    back = start(swarm, leaver.name, port=leaver.port)
    eventually(lambda: swarm.are(**dict.fromkeys(NAMES, "alive")), swarm.story)
    assert back.status()["self"]["generation"] == generation + 1


def test_a_peer_whose_state_is_lost_lives_in_a_later_generation(swarm: Swarm) -> None:
    loser = swarm["dan"]
    generation = loser.status()["self"]["generation"]
    loser.kill()
    shutil.rmtree(swarm.directory / loser.name)
    eventually(lambda: swarm.are(dan="dead"), swarm.story)
    back = start(swarm, loser.name, port=loser.port)
    eventually(lambda: swarm.are(**dict.fromkeys(NAMES, "alive")), swarm.story)
    assert back.status()["self"]["generation"] > generation


def test_the_source_leaves_in_the_middle_of_an_answer(swarm: Swarm) -> None:
    run = asking(swarm)
    with killed_at_the_end(run):
        eventually(lambda: have_begun(swarm, 1), swarm.story)
        assert swarm["amy"].interrupt() == 0
        stdout, _ = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 1
    assert "is leaving the swarm" in json.loads(stdout)["error"]
    eventually(swarm.is_idle, swarm.story)
