"""One, two and three peers give the same answers as transformers alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.e2e.conftest import BLOCK_MIB, N_BLOCKS
from tests.e2e.swarm import Machine, Peer, Swarm, eventually, killed_at_the_end
from tests.model.tiny import transformers_greedy

pytestmark = pytest.mark.timeout(300)

NAMES = ("amy", "ben", "cat")
PROMPT = "What do three small devices say?"
N_TOKENS = 24
ALL_THAT_FIT = 100_000


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["alone", "two with a secret", "three"])
def swarm(
    request: pytest.FixtureRequest, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Swarm]:
    """So little memory on each that it takes all of them; prompts enter at the first."""
    n_peers = request.param
    directory = tmp_path_factory.mktemp("swarm")
    with Swarm(machine, directory) as swarm:
        if n_peers == 2:
            swarm.common_flags = ["--swarm", "two", "--secret-file", str(_secret(swarm))]
        layers_mib = BLOCK_MIB * N_BLOCKS // n_peers + BLOCK_MIB // 2
        for name in NAMES[:n_peers]:
            role = "--source" if name == NAMES[0] else "--no-source"
            few = ("--context", 192, "--batch", 2, "--min-members", n_peers)
            swarm.start(name, role, *few, layers_mib=layers_mib)
        swarm.serving_plan(*NAMES[:n_peers])
        yield swarm


def _secret(swarm: Swarm) -> Path:
    file = swarm.directory / "secret"
    file.write_text(swarm.machine.edgeshard("secret").stdout)
    return file


def test_all_see_the_same_swarm(swarm: Swarm) -> None:
    names = {peer.name for peer in swarm.peers}

    def agreed() -> list[dict[str, Any]]:
        reports = [peer.status() for peer in swarm.peers]
        n_links = {len(report["links"]) for report in reports}
        return reports if n_links == {len(names) * (len(names) - 1)} else []

    reports = eventually(agreed, swarm.story)
    for report in reports:
        stages = sorted(report["plan"]["stages"], key=lambda stage: int(stage["stage"]))
        assert [stage["start"] for stage in stages][0] == 0
        assert all(a["end"] == b["start"] for a, b in pairwise(stages))
        assert stages[-1]["end"] == N_BLOCKS + 2
        assert {stage["peer"] for stage in stages} == names
        assert {(m["name"], m["state"]) for m in report["members"]} == {
            (name, "alive") for name in names
        }
        assert {p["name"] for p in report["profiles"] if p["is_eligible"] and p["decode"]} == names
        assert all(link["bytes_per_s"] > 0 for link in report["links"])
        assert report["plan"] | {"state": ""} == reports[0]["plan"] | {"state": ""}
        for part in ("profiles", "links", "settings"):
            assert report[part] == reports[0][part]


def test_greedy_tokens_are_those_of_transformers(swarm: Swarm) -> None:
    model = swarm.machine.model
    prompt_ids = AutoTokenizer.from_pretrained(model).encode(PROMPT)
    answer = swarm["amy"].run(PROMPT, "--max-tokens", N_TOKENS)
    assert answer["token_ids"] == transformers_greedy(model, prompt_ids, N_TOKENS)
    assert (answer["finish_reason"], answer["failovers"]) == ("length", 0)
    assert answer["prompt_tokens"] == len(prompt_ids)
    assert answer["plan_id"] == swarm["amy"].status()["plan"]["plan_id"]


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
    """The first text is there long before the last."""
    amy = swarm["amy"]
    with _asking(amy) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        (request,) = eventually(lambda: amy.status()["requests"], swarm.story)
        assert first
        assert request["state"] == "running"
        assert request["generated_tokens"] < ALL_THAT_FIT


def test_ctrl_c_frees_the_cache_everywhere(swarm: Swarm) -> None:
    with _asking(swarm["amy"]) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "edgeshard: cancelled"
    eventually(lambda: is_idle(swarm), swarm.story)


def is_idle(swarm: Swarm) -> bool:
    reports = [peer.status() for peer in swarm.living()]
    return all(r["requests"] == [] and r["self"]["requests_in_stage"] == 0 for r in reports)
