"""``edgeshard plan --live``: what simulated peers know, through the real answer and the real
command line; only the socket between is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from edgeshard_p2p.cli import main
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.core.report import report
from edgeshard_p2p.core.view import View
from edgeshard_p2p.net.client import NoAnswer
from edgeshard_p2p.net.transport import Transport
from edgeshard_p2p.runtime.clients import Clients
from edgeshard_p2p.wire import client as wire
from tests.core.parts import some
from tests.sim.swarms import EVERYTHING, core, settle, swarm_of

NAMES = "abc"
SWARM = b"swarm..1"


class FakeClient:
    """In place of ``net.client.Client``: asks a peer's core in this process."""

    def __init__(self, answer: bytes | PeerCore | None) -> None:
        self._answers = [answer] if isinstance(answer, bytes) else []
        self._core = answer if isinstance(answer, PeerCore) else None

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, request: wire.ClientRequest) -> None:
        if self._core is not None:
            clients = Clients(
                self._core, cast("Transport", self), lambda _: None, dict, lambda _: None
            )
            _, arrived = wire.decode_request(wire.encode_request(SWARM, request))
            clients.on_request(b"client", arrived, None)

    def answer_client(self, _: bytes, data: bytes) -> bool:
        self._answers.append(data)
        return True

    def answers(self, _: float) -> Iterator[wire.ClientAnswer]:
        yield from map(wire.decode_answer, self._answers)
        raise NoAnswer("nobody answers")


class Asked:
    """The command line, and who answers it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answer: bytes | PeerCore | None = None
        patch.setattr("edgeshard_p2p.net.client.Client", lambda *_: FakeClient(self.answer))

    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, ["plan", *map(str, arguments)])

    def told(self, *arguments: object) -> Any:
        result = self("--live", "--json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def peers() -> dict[str, PeerCore]:
    """Of a settled swarm; the model takes two of them."""
    swarm = swarm_of(NAMES)
    settle(swarm)
    return {name: core(swarm, name) for name in NAMES}


@pytest.fixture
def asked(peers: dict[str, PeerCore], monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked(monkeypatch)
    asked.answer = peers["a"]
    return asked


def known(core: PeerCore) -> Snapshot:
    return some(some(core.planning.replan.view).snapshot)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_plan_that_is_served(asked: Asked, peers: dict[str, PeerCore], name: str) -> None:
    asked.answer = peers[name]
    told, served = asked.told(), report(peers[name])["plan"]
    assert served["state"] == "active"
    assert told["plan_id"] == served["plan_id"]
    assert told["snapshot_id"] == known(peers[name]).id
    assert told["predicted"]["latency_ms"] == served["predicted_ms_per_token"]
    assert (told["batch"], told["dtype"]) == (served["batch"], served["dtype"])
    shared = [stage for stage in served["stages"] if stage["stage"] > 0]
    assert [stage["peer"] for stage in told["stages"][len(NAMES) :]] == [s["peer"] for s in shared]
    assert f"plan {served['plan_id'][:6]}" in asked("--live").stdout


def test_options_replace_what_the_swarm_has_settled(asked: Asked, peers: dict[str, Any]) -> None:
    settled = known(peers["a"]).workload
    as_it_is = asked.told()
    assert (as_it_is["batch"], settled.batch, settled.context) == (2, 4, 256)  # As many as fit.
    assert asked.told("--batch", 1)["batch"] == 1
    quarter = asked.told("--context", 64)
    assert quarter["batch"] == settled.batch
    kv_bytes = [sum(s["kv_bytes"] for s in told["stages"]) for told in (as_it_is, quarter)]
    assert kv_bytes[0] == 2 * kv_bytes[1]  # Of half the sequences, four times as long.
    wide = asked.told("--objective", "throughput", "--micro-batch", 2, "--dtype", "bf16")
    assert (wide["objective"], wide["dtype"]) == ("throughput", "bf16")
    assert wide["predicted"]["micro_batch"] == 2
    assert wide["batch"] == settled.batch  # They fit now; and not the 8 of topology files.
    assert wide["notes"] == ["bf16 changes bytes; times stay those that were measured or given"]
    long = asked.told("--prompt", 200, "--generate", 20)["predicted"]
    assert long["ttft_ms"] > as_it_is["predicted"]["ttft_ms"]


def test_what_if_one_were_gone_or_there_were_another(asked: Asked) -> None:
    told = asked.told("--what-if", "drop=b", "--what-if", "add=c")
    assert told["before"]["plan_id"] == asked.told()["plan_id"]
    after = told["after"]
    here = {stage["peer"] for stage in after["stages"]}
    here |= {entry["peer"] for entry in after["excluded"]}
    assert here == {"a", "c", "c.new-1"}
    more = asked.told("--what-if", "memory:a=1")["after"]
    assert more["batch"] == 4 > told["before"]["batch"]
    slow = asked.told(*(word for b in "bc" for word in ("--what-if", f"bandwidth:a-{b}=0.1")))
    ms = [slow[when]["predicted"]["ms_per_token"] for when in ("before", "after")]
    assert ms[0] < ms[1]
    lone = asked("--live", "--what-if", "drop=a", "--what-if", "drop=b", "--what-if", "drop=c")
    assert lone.exit_code == 1
    assert "no source" in lone.stdout


def test_all_that_can_be_asked_of_a_file(asked: Asked) -> None:
    losses = asked.told("--survives")["losses"]
    assert losses.keys() <= set(NAMES)
    assert losses["b"] == asked.told("--what-if", "drop=b")["after"]
    explained = asked.told("--explain")["devices"]
    assert [one["peer"] for one in explained] == list(NAMES)
    compared = asked.told("--compare")
    assert compared["exact"] == asked.told()
    assert compared["cloud-edge-even"]["reason"] == "a running swarm names no cloud"
    for option in ("--survives", "--explain", "--compare"):
        assert asked("--live", option).exit_code == 0


def test_an_algorithm_that_needs_a_cloud_is_wrong_usage(asked: Asked) -> None:
    result = asked("--live", "--algorithm", "cloud-edge-opt")
    assert result.exit_code == 2
    assert result.stderr == "edgeshard: cloud-edge-opt: a running swarm names no cloud\n"


def test_who_is_there_and_cannot_be_planned_is_named_with_the_reason(asked: Asked) -> None:
    why = "it is measuring itself"
    snapshot = known(cast("PeerCore", asked.answer))
    asked.answer = wire.encode_answer(wire.SwarmView(snapshot, "", {"d": why}))
    assert {"peer": "d", "reason": why} in asked.told()["excluded"]
    assert f"  without d: {why}\n" in asked("--live").stdout
    # Also where it may be the very one that is missing.
    few = replace(snapshot, devices=(replace(snapshot.devices[0], budget_bytes=1),))
    asked.answer = wire.encode_answer(wire.SwarmView(few, "", {"d": why}))
    infeasible = asked("--live", "--json")
    assert infeasible.exit_code == 1
    assert json.loads(infeasible.stdout)["excluded"] == [{"peer": "d", "reason": why}]


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (None, "this peer has just started"),
        (View(None, "nobody has named a model; start a peer with --model"), "nobody has named a"),
        (View(None, "no peer is ready to be planned yet", {"a": "it is measuring itself"}),
         "no peer is ready to be planned yet"),
    ],
    ids=["started", "no model", "not ready"],
)  # fmt: skip
def test_where_there_is_nothing_to_plan_it_says_what_the_swarm_waits_for(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, view: View | None, why: str
) -> None:
    monkeypatch.setattr(cast("PeerCore", asked.answer).planning.replan, "view", view)
    result = asked("--live", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"edgeshard: {why}")
    assert len(result.stderr.splitlines()) == 1
    told = json.loads(result.stdout)
    assert told == {"error": result.stderr[len("edgeshard: ") : -1], "exit_code": 1}


def test_where_nobody_answers(asked: Asked) -> None:
    asked.answer = None
    result = asked("--live", "--peer", "127.0.0.1:7911")
    assert (result.exit_code, result.stderr) == (1, "edgeshard: nobody answers\n")


def test_a_refusal_is_passed_on(asked: Asked) -> None:
    asked.answer = wire.encode_answer(wire.Failed("of another swarm", is_usage=True))
    result = asked("--live", "--swarm", "other")
    assert (result.exit_code, result.stderr) == (2, "edgeshard: of another swarm\n")


def test_what_is_no_swarm_is_one_line(asked: Asked) -> None:
    snapshot = known(cast("PeerCore", asked.answer))
    first = snapshot.devices[0]
    broken = replace(snapshot, devices=(replace(first, unit_us=(1,)), *snapshot.devices[1:]))
    for answer, why in (
        (b"\xc1", "127.0.0.1:7911 gives an answer of another release"),
        (wire.encode_answer(wire.Okay()), "127.0.0.1:7911 gives an answer of another release"),
        (wire.encode_answer(wire.SwarmView(broken, "", {})), "gives what cannot be planned: a@1"),
    ):
        asked.answer = answer
        result = asked("--live")
        assert result.exit_code == 1
        assert why in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--live", "--model", "llama2-7b"], "no --topology, --model or --diff"),
        (["--live", "--topology", "x.toml"], "no --topology, --model or --diff"),
        (["--live", "--diff", "a", "b"], "no --topology, --model or --diff"),
        (["--peer", "127.0.0.1:7911"], "--peer is for --live"),
        (["--topology", "x.toml", "--model", "m", "--swarm", "s"], "--swarm is for --live"),
        (["--diff", "a", "b", "--secret-file", "s"], "--secret-file is for --live"),
        ([], "--topology and --model are needed, or --live"),
        (["--live", "--peer", "127.0.0.1:0"], "is not HOST:PORT"),
        (["--live", "--secret-file", "/no/such/secret"], "cannot read the secret file"),
        (["--live", "--what-if", "add=desktop"], "no 'desktop' to add; there are a, b, c"),
        (["--live", "--explain", "--compare"], "one at a time"),
    ],
    ids=" ".join,
)
def test_wrong_usage(asked: Asked, arguments: list[str], why: str) -> None:
    result = asked(*arguments)
    assert result.exit_code == 2
    assert why in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_single_peer_that_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = swarm_of("a", EVERYTHING)
    plan_id = settle(swarm)
    asked = Asked(monkeypatch)
    asked.answer = core(swarm, "a")
    told = asked.told("--what-if", "add=a")
    assert told["before"]["plan_id"] == told["after"]["plan_id"] == plan_id
    assert told["after"]["notes"] == ["no link of a.new-1 with another device is known"]
