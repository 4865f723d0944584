"""What the peers of a settled swarm say of it, when they are asked."""

from __future__ import annotations

import json

from edgeshard_p2p.core.report import Report, report
from edgeshard_p2p.sim.simulator import Simulator
from tests.sim.swarms import answer, core, settle, swarm_of


def _of(swarm: Simulator, name: str) -> Report:
    told: Report = json.loads(json.dumps(report(core(swarm, name))))
    return told


def test_everyone_says_the_same_of_the_swarm() -> None:
    swarm = swarm_of("abc")
    plan_id = settle(swarm)
    told = [_of(swarm, name) for name in "abc"]
    for key in ("plan", "members", "profiles", "links", "settings", "one_way"):
        assert told[0][key] == told[1][key] == told[2][key], key
    plan = told[0]["plan"]
    assert (plan["plan_id"], plan["state"], plan["waiting_for"]) == (plan_id, "active", "")
    assert all(stage["is_ready"] for stage in plan["stages"])
    units = [(s["start"], s["end"]) for s in plan["stages"] if s["stage"] > 0]
    assert (units[0][0], units[-1][1]) == (2, 6)
    assert [(m["name"], m["state"]) for m in told[0]["members"]] == [(n, "alive") for n in "abc"]
    assert len(told[0]["links"]) == 6
    assert told[0]["one_way"] == []


def test_running_request_and_departed_member_are_told() -> None:
    swarm = swarm_of("abcd")
    settle(swarm)
    request = swarm.submit("a", (1, 2, 3), 50)
    assert swarm.run_until(lambda: len(request.tokens) == 2, 20.0)
    (row,) = _of(swarm, "a")["requests"]
    assert (row["state"], row["prompt_tokens"], row["generated_tokens"]) == ("running", 3, 2)
    assert _of(swarm, "b")["requests"] == []
    swarm.leave("d")
    swarm.run(swarm.now + 1.0)
    states = {member["name"]: member["state"] for member in _of(swarm, "b")["members"]}
    assert states == {"a": "alive", "b": "alive", "c": "alive", "d": "left"}
    answer(swarm, request)
    assert _of(swarm, "a")["requests"] == []


def test_who_hears_only_by_others_is_told_by_everyone() -> None:
    swarm = swarm_of("abc", 10**9)
    settle(swarm)
    swarm.network.cut("b", "a")
    expected = {"from": "a", "to": "b"}
    assert swarm.run_until(lambda: expected in _of(swarm, "c")["one_way"], 30.0)


def test_swarm_without_a_plan_says_what_for_it_waits() -> None:
    swarm = swarm_of("ab", 20_000)
    assert settle(swarm) is None
    plan = _of(swarm, "b")["plan"]
    assert (plan["plan_id"], plan["state"], plan["stages"]) == (None, "none", [])
    assert "more memory" in plan["waiting_for"]
