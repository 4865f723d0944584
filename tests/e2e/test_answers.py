"""One, two and three peers give the same answers as transformers alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.e2e.conftest import BLOCK_MIB, CONTEXT, N_BLOCKS
from tests.e2e.swarm import Machine, Peer, Swarm, eventually, killed_at_the_end
from tests.model.tiny import transformers_greedy

pytestmark = pytest.mark.timeout(300)

NAMES = ("amy", "ben", "cat")
PROMPT = "What do three small devices say?"
CHAT = "One of them keeps the first layers, another the last, and so " + PROMPT
MORE = " They say the same as one."
N_TOKENS = 24
ALL_THAT_FIT = 10_000


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["alone", "two with a secret", "three"])
def swarm(
    request: pytest.FixtureRequest, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Swarm]:
    """So little memory on each that it takes all of them; prompts enter at the first."""
    n_peers = request.param
    directory = tmp_path_factory.mktemp("swarm")
    with Swarm(machine, directory) as swarm:
        if n_peers == 2:
            swarm.name, swarm.secret_file = "two", directory / "secret"
            swarm.secret_file.write_text(machine.edgeshard("secret").stdout)
        layers_mib = BLOCK_MIB * N_BLOCKS // n_peers + BLOCK_MIB // 2
        for name in NAMES[:n_peers]:
            role = "--source" if name == NAMES[0] else "--no-source"
            flags = (role, "--batch", 2, "--min-members", n_peers)
            swarm.start(name, *flags, layers_mib=layers_mib)
        swarm.serving_plan(*NAMES[:n_peers])
        yield swarm


@contextmanager
def asking_at_length(peer: Peer) -> Iterator[subprocess.Popen[str]]:
    """`edgeshard run` for an answer that fills the context; its first text has come."""
    pipe = subprocess.PIPE
    command = ("run", PROMPT, "--raw", "--max-tokens", ALL_THAT_FIT, *peer.client_flags())
    process = peer.swarm.machine.popen(*command, stdout=pipe, stderr=pipe)
    with killed_at_the_end(process), process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1), peer.swarm.story()
        yield process


def test_all_see_the_same_swarm(swarm: Swarm) -> None:
    names = {peer.name for peer in swarm.peers}

    def agreed() -> list[dict[str, Any]]:
        reports = [peer.ask("status").objects[0] for peer in swarm.peers]
        facts = ("plan", "members", "profiles", "links", "settings")
        is_agreed = all(report[fact] == reports[0][fact] for report in reports for fact in facts)
        has_links = len(reports[0]["links"]) == len(names) * (len(names) - 1)
        return reports if is_agreed and has_links else []

    report = eventually(agreed, swarm.story)[0]
    stages = sorted(report["plan"]["stages"], key=lambda stage: int(stage["stage"]))
    assert stages[0]["start"] == 0
    assert all(a["end"] == b["start"] for a, b in pairwise(stages))
    assert stages[-1]["end"] == N_BLOCKS + 2
    assert {stage["peer"] for stage in stages} == names
    assert {(m["name"], m["state"]) for m in report["members"]} == {(n, "alive") for n in names}
    assert {p["name"] for p in report["profiles"] if p["is_eligible"] and p["decode"]} == names
    assert all(link["bytes_per_s"] > 0 for link in report["links"])
    assert all(link["round_trip_us"] > 0 for link in report["links"])


def test_the_plan_for_the_running_swarm_is_the_one_it_serves(swarm: Swarm) -> None:
    asked = swarm.peers[-1]

    def planned() -> dict[str, Any]:
        """What both say, once new figures of the links move nothing any more."""
        (told,) = asked.ask("plan", "--live").objects
        served = asked.ask("status").objects[0]["plan"]
        return told if told["plan_id"] == served["plan_id"] else {}

    told = eventually(planned, swarm.story)
    assert {stage["peer"] for stage in told["stages"]} == {peer.name for peer in swarm.peers}
    assert (told["batch"], told["excluded"]) == (2, [])
    more = asked.ask("plan", "--live", "--what-if", "add=amy", "--objective", "throughput")
    assert more.exit_code == 0, more.stderr
    assert more.objects[0]["after"]["feasible"]


def test_greedy_tokens_are_those_of_transformers(swarm: Swarm) -> None:
    model = swarm.machine.model
    prompt_ids = AutoTokenizer.from_pretrained(model).encode(PROMPT)
    amy = swarm["amy"]
    plan_id = amy.status()["plan"]["plan_id"]
    answer = amy.run(PROMPT, "--max-tokens", N_TOKENS)
    assert answer["token_ids"] == transformers_greedy(model, prompt_ids, N_TOKENS)
    assert (answer["finish_reason"], answer["failovers"]) == ("length", 0)
    assert answer["prompt_tokens"] == len(prompt_ids)
    # New figures of the links may have exchanged two stages meanwhile.
    assert answer["plan_id"] in (plan_id, amy.status()["plan"]["plan_id"])


def test_next_turn_of_a_chat_computes_only_what_is_new(swarm: Swarm) -> None:
    model, amy = swarm.machine.model, swarm["amy"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    first_ids, second_ids = tokenizer.encode(CHAT), tokenizer.encode(CHAT + MORE)
    assert amy.run(CHAT, "--max-tokens", 4)["cached_tokens"] == 0
    answer = amy.run(CHAT + MORE, "--max-tokens", N_TOKENS)
    # The last word may be cut into other tokens where the text goes on.
    assert len(first_ids) - 2 <= answer["cached_tokens"] <= len(first_ids)
    assert answer["token_ids"] == transformers_greedy(model, second_ids, N_TOKENS)
    assert answer["failovers"] == 0


def test_bench_says_what_the_users_of_many_requests_see(swarm: Swarm) -> None:
    amy = swarm["amy"]
    command = ["--requests", 6, "--concurrency", 4, "--prompt", 8, "--generate", 6]
    done = amy.ask("bench", *command, "--temperature", 1, "--seed", 4)
    assert done.exit_code == 0, done.stderr
    (told,) = done.objects
    assert (told["requests"], told["failed"], told["tokens"]) == (6, 0, 36)
    assert told["errors"] == []
    assert 0 < told["ttft_ms"]["p50"] <= told["ttft_ms"]["max"]
    assert set(told["bubbles"]) == {peer.name for peer in swarm.peers}
    # Two of the four wait for a slot: the plan holds two.
    assert (told["batch"], told["predicted"]["requests"]) == (2, 2)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_objective_may_change_while_the_swarm_runs(swarm: Swarm, objective: str) -> None:
    amy = swarm["amy"]
    assert amy.ask("set", f"objective={objective}").exit_code == 0

    def has_taken_it() -> bool:
        reports = [peer.status() for peer in swarm.peers]
        return {report["plan"].get("objective") for report in reports} == {objective}

    eventually(has_taken_it, swarm.story)
    assert amy.run(PROMPT, "--max-tokens", 3)["finish_reason"] == "length"


@pytest.fixture(scope="module")
def first_answers() -> dict[str, list[int]]:
    """What the first number of peers said, by question."""
    return {}


def test_a_seed_gives_the_same_tokens_on_any_number_of_peers(
    swarm: Swarm, first_answers: dict[str, list[int]]
) -> None:
    for seed in ("1", "2"):
        how = ("--seed", seed, "--temperature", 1.5, "--top-p", 0.9, "--max-tokens", N_TOKENS)
        tokens = swarm["amy"].run(PROMPT, *how)["token_ids"]
        assert len(tokens) == N_TOKENS
        assert tokens == first_answers.setdefault(seed, tokens)
    assert first_answers["1"] != first_answers["2"]


def test_the_answer_streams(swarm: Swarm) -> None:
    with asking_at_length(swarm["amy"]):
        (request,) = swarm["amy"].status()["requests"]
        assert request["state"] == "running"
        assert request["generated_tokens"] < CONTEXT // 2


def test_ctrl_c_frees_the_cache_everywhere(swarm: Swarm) -> None:
    with asking_at_length(swarm["amy"]) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "edgeshard: cancelled"
    eventually(swarm.is_idle, swarm.story)


def test_a_client_that_dies_frees_the_cache_too(swarm: Swarm) -> None:
    with asking_at_length(swarm["amy"]) as process:
        process.kill()
    eventually(swarm.is_idle, swarm.story)


def test_status_and_run_in_words(swarm: Swarm) -> None:
    amy = swarm["amy"]
    status = swarm.machine.edgeshard("status", *amy.client_flags())
    assert status.exit_code == 0
    for peer in swarm.peers:
        assert f"{peer.name}@1  alive" in status.stdout
    run = swarm.machine.edgeshard("run", PROMPT, "--max-tokens", 3, *amy.client_flags())
    assert run.exit_code == 0
    assert "3 tokens (length)" in run.stderr
    assert amy.ask("status").objects[0].keys() == amy.status().keys()
