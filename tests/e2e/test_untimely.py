"""What comes too early, in the middle of something, or from another release."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import msgspec
import psutil
import pytest
import zmq

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Address, Hello, Identity, Refused
from edgeshard_p2p.net.security import open_security
from edgeshard_p2p.net.transport import FROM_PEER
from edgeshard_p2p.wire.codec import decode_control
from tests.e2e.swarm import (
    DEADLINE_S,
    Machine,
    Peer,
    Swarm,
    ended,
    eventually,
    free_port,
    killed_at_the_end,
)

pytestmark = pytest.mark.timeout(300)

FAILED, USAGE = 1, 2
LATER_VERSION = 99


@pytest.fixture(scope="module")
def amy(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A peer that has only just come to life."""
    with Swarm(machine, tmp_path_factory.mktemp("swarm"), "untimely") as swarm:
        peer = swarm.start("amy", waits=False)
        eventually(peer.status, swarm.story)
        yield peer
        assert "Traceback" not in swarm.story()


def test_prompt_before_the_model_is_open(amy: Peer) -> None:
    """Nobody is told that a prompt is wrong which only comes too early."""
    refusals: list[str] = []

    def answered() -> list[int]:
        asked = amy.ask("run", "hello", "--max-tokens", 3)
        if asked.exit_code == 0:
            return list(asked.objects[0]["token_ids"])
        refusals.append(asked.complaint)
        return []

    assert len(eventually(answered, lambda: f"{refusals}\n{amy.swarm.story()}")) == 3
    early = ("nobody has named a model", "is still opening the model; try again")
    assert all(any(reason in refusal for reason in early) for refusal in refusals), refusals


def test_requests_that_are_refused_come_again_when_they_were_told_to(amy: Peer) -> None:
    command = ["--requests", 90, "--concurrency", 80, "--prompt", 2, "--generate", 24]
    done = amy.ask("bench", *command)
    assert done.exit_code == 0, done.stderr
    (told,) = done.objects
    assert (told["failed"], told["tokens"]) == (0, 90 * 24)
    assert told["refusals"] > 0


def test_prompt_that_is_no_text(amy: Peer) -> None:
    prompt = b"caf\xe9".decode(errors="surrogateescape")
    asked = amy.ask("run", prompt)
    assert asked.exit_code == USAGE
    assert asked.complaint == "the prompt is not UTF-8 text"


def test_peer_of_a_later_release_is_refused(amy: Peer) -> None:
    swarm_key = open_security("untimely", ()).swarm_key
    me = Identity(PeerId("later", 1), "0" * 16, Address("127.0.0.1", free_port()))
    hello = Hello(me, 0, wire_min=LATER_VERSION, wire_max=LATER_VERSION)
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as inbox,
        context.socket(zmq.DEALER) as outbox,
    ):
        inbox.linger = outbox.linger = 0
        inbox.bind(f"tcp://{me.address}")
        outbox.connect(f"tcp://{amy.address}")
        data = msgspec.msgpack.encode((LATER_VERSION, swarm_key, me.peer, hello))
        outbox.send_multipart([FROM_PEER, data])
        assert inbox.poll(int(DEADLINE_S * 1e3)), amy.log
        sender, refused = decode_control(swarm_key, inbox.recv_multipart()[-1])
    assert isinstance(refused, Refused)
    assert (sender.name, refused.reason) == ("amy", "wire_version")
    assert refused.detail == (
        "later@1 speaks wire versions 99-99, this swarm 1-1; install the same release on both"
    )
    assert {member["name"] for member in amy.status()["members"]} == {"amy"}


def test_planner_that_is_killed_is_started_again(amy: Peer) -> None:
    amy.swarm.serving_plan("amy")
    (killed,) = psutil.Process(amy.process.pid).children()
    killed.kill()
    (another,) = eventually(
        lambda: [p for p in psutil.Process(amy.process.pid).children() if p != killed],
        amy.swarm.story,
    )
    assert another.is_running()
    assert amy.run("hello", "--max-tokens", 3)["finish_reason"] == "length"


def test_source_that_is_killed_in_the_middle_of_an_answer(amy: Peer) -> None:
    """Last, for it is the end of amy."""
    amy.swarm.serving_plan("amy")
    pipe = subprocess.PIPE
    command = ("run", "hello", "--raw", "--max-tokens", 10_000, *amy.client_flags())
    run = amy.swarm.machine.popen(*command, stdout=pipe, stderr=pipe)
    with killed_at_the_end(run):
        eventually(lambda: amy.status()["requests"], amy.swarm.story)
        amy.kill()
        end = ended(run)
    assert end.exit_code == FAILED
    assert end.complaint == f"{amy.address} is gone, before the answer was complete"


@pytest.mark.parametrize(
    "arguments", [["--device", "cuda"], ["--config", "peer.toml"]], ids=["flag", "file"]
)
def test_device_that_is_not_built_yet(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory, arguments: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("config")
    (directory / "peer.toml").write_text("device = 'cuda'\n")
    arguments = [str(directory / word) if word == "peer.toml" else word for word in arguments]
    end = machine.edgeshard("peer", "--json", *arguments)
    assert end.exit_code == USAGE
    assert end.complaint == "--device cuda is not built yet; this release computes on cpu"
    assert end.objects == [{"error": end.complaint, "exit_code": USAGE}]


@pytest.mark.parametrize("moment", ["listens on", "measuring units 1-"])
def test_ctrl_c_in_the_middle(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory, moment: str
) -> None:
    """While its planner still starts; while its compute thread is inside torch."""
    directory = tmp_path_factory.mktemp("swarm")
    unmeasured = Machine(
        machine.environment, machine.model, machine.bare_mib, directory / "unmeasured"
    )
    with Swarm(unmeasured, directory, "hasty") as swarm:
        peer = swarm.start("amy", waits=False)
        eventually(lambda: moment in peer.log, swarm.story)
        assert peer.interrupt() in (0, FAILED), peer.log
        assert "Traceback" not in peer.log
        assert "terminate called" not in peer.log
