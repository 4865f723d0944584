"""Each wrong input: one line that names the cause and the next step, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Hello, Refused
from edgeshard_p2p.net.security import open_security
from edgeshard_p2p.net.transport import FROM_PEER
from edgeshard_p2p.wire.codec import decode_control
from tests.e2e.conftest import BLOCK_MIB, CONTEXT, N_BLOCKS, save_tokenizer
from tests.e2e.swarm import DEADLINE_S, Ended, Machine, Swarm, eventually, free_port
from tests.model.tiny import save_model

pytestmark = pytest.mark.timeout(300)

FAILED, USAGE = 1, 2


# --- the command line alone ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["peer", "--memory", "lots"], "'lots' is not a size; write for instance 900MiB or 4GiB"),
        (["peer", "--listen", "127.0.0.1:port"], "is not HOST:PORT"),
        (["peer", "--join", "a b"], "'a b' is not HOST:PORT"),
        (["peer", "--name", "my peer"], "use up to 63 letters, digits"),
        (["peer", "--context", "0"], "--context 0 is not possible"),
        (["peer", "--micro-batch", "-1"], "--micro-batch -1 is not possible"),
        (["peer", "--micro-batch", "9", "--batch", "8"], "9 rows to a pass cannot be: batch is 8"),
        (["peer", "--config", "/no/such.toml"], "cannot read /no/such.toml"),
        (["status", "--peer", "127.0.0.1:0"], "is not HOST:PORT"),
        (["run", "hello", "--secret-file", "/no/such/secret"], "cannot read the secret file"),
        (["run", ""], "the prompt is empty"),
        (["run", " \n\t"], "the prompt is empty"),
        (["set", "batch"], "'batch' is not KEY=VALUE"),
        (["plan", "--live", "--model", "smollm2-135m-instruct"], "--live plans the running swarm"),
        (["plan", "--peer", "127.0.0.1:7911"], "--peer is for --live"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_said_at_once(machine: Machine, arguments: list[str], why: str) -> None:
    ended = machine.edgeshard(*arguments)
    assert ended.exit_code == USAGE
    assert why in ended.complaint
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    as_json = machine.edgeshard(*arguments, "--json")
    assert as_json.objects == [{"error": ended.complaint, "exit_code": USAGE}]


def test_a_key_of_the_file_that_nobody_knows(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "peer.toml"
    file.write_text("colour = 'red'\n")
    ended = machine.edgeshard("peer", "--config", file)
    assert ended.exit_code == USAGE
    assert f"{file}: unknown key 'colour'" in ended.complaint


@pytest.mark.parametrize(
    "command", [["status"], ["run", "hello"], ["set", "batch=2"], ["plan", "--live"]]
)
def test_where_nobody_is(machine: Machine, command: list[str]) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    ended = machine.edgeshard(*command, "--peer", nobody, "--json")
    assert ended.exit_code == FAILED
    assert ended.complaint == (
        f"nobody answers at {nobody}; is a peer running there? (edgeshard peer)"
    )
    assert ended.objects == [{"error": ended.complaint, "exit_code": FAILED}]


def test_help_loads_nothing_that_takes_long(machine: Machine) -> None:
    script = (
        "import sys\n"
        "from edgeshard_p2p.cli import main\n"
        "names = ['', *main.commands]\n"
        "for name in names:\n"
        "    main([*([name] if name else []), '--help'], standalone_mode=False)\n"
        "assert len(names) >= 7, names\n"
        "print({'torch', 'transformers', 'zmq', 'numpy', 'asyncio'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=machine.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


# --- a peer that cannot start -------------------------------------------------------------


class Starts:
    """Peers that are to fail, started two at a time: each loads torch before it knows."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._machine = machine
        self._directory = directory
        self._ended: dict[str, Future[Ended]] = {}

    def add(self, name: str, *flags: object) -> None:
        command = ("peer", "--no-mdns", *flags)
        if "--listen" not in flags:
            command += ("--listen", f"127.0.0.1:{free_port()}")
        if "--state-dir" not in flags:
            command += ("--state-dir", self._directory / "state" / name)
        self._ended[name] = self._pool.submit(self._machine.edgeshard, *command)

    def complaint(self, name: str, exit_code: int) -> str:
        ended = self._ended[name].result()
        assert ended.exit_code == exit_code, ended.stderr
        return ended.complaint

    def wait(self) -> None:
        """Until all have ended."""
        for ended in self._ended.values():
            ended.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _damaged_model(machine: Machine, path: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(machine.model, path)
    damage(path)
    return path


def _truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)


def _of_another_size(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["intermediate_size"] += 64
    (model / "config.json").write_text(json.dumps(config))


def _of_another_family(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "whisper"}')


@pytest.fixture(scope="module")
def starts(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starts]:
    directory = tmp_path_factory.mktemp("starts")
    starts = Starts(machine, directory)
    tiny = save_model(directory / "other", "llama")
    save_tokenizer(tiny)
    short = directory / "short"
    short.write_text("too short\n")
    damages = {"truncated": _truncate, "foreign": _of_another_size, "family": _of_another_family}
    try:
        starts.add("unknown model", "--model", "no-such-model")
        for name, damage in damages.items():
            starts.add(name, "--model", _damaged_model(machine, directory / name, damage))
        starts.add("short secret", "--secret-file", short)
        starts.add("no secret", "--listen", "0.0.0.0:7911")
        starts.add("little memory", "--memory", "10MiB", "--model", tiny)
        starts.add("state file", "--state-dir", short)
        yield starts
    finally:
        starts.close()


def test_a_model_that_is_nowhere(starts: Starts, machine: Machine) -> None:
    text = starts.complaint("unknown model", FAILED)
    assert "no model 'no-such-model'" in text
    assert machine.environment["EDGESHARD_CACHE"] in text
    assert "fetch smollm2-135m-instruct first" in text


def test_a_checkpoint_that_was_cut_off(starts: Starts) -> None:
    text = starts.complaint("truncated", FAILED)
    assert "model.safetensors is truncated or damaged" in text
    assert "fetch it again" in text


def test_a_checkpoint_of_another_model(starts: Starts) -> None:
    text = starts.complaint("foreign", FAILED)
    assert "the files are of different models; fetch it again" in text


def test_a_family_that_is_not_supported(starts: Starts) -> None:
    text = starts.complaint("family", FAILED)
    assert "family 'whisper' is not supported; supported: " in text
    assert "llama" in text


def test_a_secret_that_could_be_guessed(starts: Starts) -> None:
    text = starts.complaint("short secret", USAGE)
    assert "shorter than 16 characters and could be guessed" in text
    assert "make one with: edgeshard secret >" in text


def test_the_open_network_without_a_secret(starts: Starts) -> None:
    text = starts.complaint("no secret", USAGE)
    assert "without a secret a peer listens on loopback only, not on 0.0.0.0" in text
    assert "--secret-file" in text


def test_memory_for_no_layer_at_all(starts: Starts) -> None:
    text = starts.complaint("little memory", USAGE)
    assert "--memory is too small: a peer needs " in text


def test_a_state_directory_that_is_a_file(starts: Starts) -> None:
    text = starts.complaint("state file", FAILED)
    assert "cannot use the state directory" in text
    assert "--state-dir" in text


# --- a swarm that does not take it --------------------------------------------------------


@pytest.fixture(scope="module")
def swarm(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Amy takes prompts and runs all; Ben does neither."""
    directory = tmp_path_factory.mktemp("swarm")
    secret_file = directory / "secret"
    secret_file.write_text("a secret that amy and ben know\n")
    with Swarm(machine, directory, "strict", secret_file) as swarm:
        for name, role in (("amy", "--source"), ("ben", "--no-source")):
            room = BLOCK_MIB * (N_BLOCKS + 2)
            flags = (role, "--batch", 2, "--numerics", "exact", "--min-members", 2)
            swarm.start(name, *flags, layers_mib=room)
        swarm.serving_plan("amy")
        yield swarm


@pytest.fixture(scope="module")
def newcomers(
    machine: Machine, swarm: Swarm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Starts]:
    directory = tmp_path_factory.mktemp("newcomers")
    newcomers = Starts(machine, directory)
    tiny = save_model(directory / "another", "llama")
    save_tokenizer(tiny)
    other_secret = directory / "secret"
    other_secret.write_text("a secret that nobody knows here\n")
    join = ("--join", swarm["amy"].address)
    known = (*join, *swarm.common_flags)
    try:
        newcomers.add("no secret", *join, "--swarm", "strict", "--name", "eve")
        newcomers.add("other secret", *join, "--secret-file", other_secret, "--name", "eve")
        newcomers.add("same name", *known, "--name", "ben")
        newcomers.add("other model", *known, "--name", "joe", "--model", tiny)
        newcomers.add("other numerics", *known, "--name", "zoe", "--numerics", "fast")
        newcomers.add("port in use", "--listen", swarm["amy"].address, "--name", "sue")
        newcomers.add("state in use", "--state-dir", swarm.directory / "amy", "--name", "pam")
        yield newcomers
    finally:
        newcomers.close()


def test_a_peer_without_the_secret(newcomers: Starts, swarm: Swarm) -> None:
    text = newcomers.complaint("no secret", USAGE)
    assert text.startswith(f"{swarm['amy'].address} does not take this peer: it asks for a secret")
    assert "--secret-file" in text


def test_a_peer_with_another_secret(newcomers: Starts, swarm: Swarm) -> None:
    text = newcomers.complaint("other secret", USAGE)
    assert f"{swarm['amy'].address} does not take this peer: it uses no secret, or another" in text


def test_a_second_peer_of_the_same_name(newcomers: Starts, swarm: Swarm) -> None:
    text = newcomers.complaint("same name", USAGE)
    assert f"the name ben belongs to the peer at {swarm['ben'].address}" in text
    assert "start this one with another --name" in text


def test_a_peer_with_another_model(newcomers: Starts, machine: Machine) -> None:
    text = newcomers.complaint("other model", USAGE)
    assert f"runs model {machine.model.name} (" in text
    assert "this peer was given another (" in text
    assert "leave --model out to take the swarm's" in text


def test_a_port_in_use(newcomers: Starts, swarm: Swarm) -> None:
    text = newcomers.complaint("port in use", FAILED)
    assert f"port {swarm['amy'].port} on 127.0.0.1 is in use" in text
    assert "choose others with --listen" in text


def test_a_state_directory_in_use(newcomers: Starts, swarm: Swarm) -> None:
    text = newcomers.complaint("state in use", FAILED)
    assert f"another peer runs with the state directory {swarm.directory / 'amy'}" in text
    assert "give this one its own --state-dir" in text


def test_a_peer_with_other_numerics(newcomers: Starts) -> None:
    text = newcomers.complaint("other numerics", USAGE)
    assert "runs numerics exact, this peer was given fast; leave --numerics out" in text


def test_the_swarm_noticed_nothing_of_those(newcomers: Starts, swarm: Swarm) -> None:
    """Whoever is refused does not become a member."""
    newcomers.wait()
    for peer in swarm.peers:
        members = peer.status()["members"]
        assert {m["name"] for m in members if m["state"] == "alive"} == {"amy", "ben"}
    assert swarm["amy"].run("hello", "--max-tokens", 3)["finish_reason"] == "length"
    assert "Traceback" not in swarm.story()


def test_a_client_without_the_secret_or_with_another(swarm: Swarm, tmp_path: Path) -> None:
    other = tmp_path / "secret"
    other.write_text("a secret that nobody knows here\n")
    to = ("--peer", swarm["amy"].address, "--swarm", "strict")
    without = swarm.machine.edgeshard("run", "hello", *to)
    assert without.exit_code == FAILED
    assert "refuses the connection: it asks for a secret" in without.complaint
    wrong = swarm.machine.edgeshard("status", *to, "--secret-file", other)
    assert wrong.exit_code == FAILED
    assert "refuses the connection: it uses no secret, or another one" in wrong.complaint


@pytest.mark.parametrize("command", [["status"], ["plan", "--live"]])
def test_a_client_of_another_swarm(swarm: Swarm, command: list[str]) -> None:
    assert swarm.secret_file is not None
    to = ("--peer", swarm["amy"].address, "--secret-file", swarm.secret_file, "--swarm", "other")
    ended = swarm.machine.edgeshard(*command, *to)
    assert ended.exit_code == USAGE
    assert ended.complaint == "amy@1 belongs to another swarm; give the same --swarm"


def test_a_prompt_longer_than_the_context(swarm: Swarm) -> None:
    ended = swarm["amy"].ask("run", "x" * CONTEXT, "--raw")
    assert ended.exit_code == FAILED
    assert f"the prompt has {CONTEXT} tokens, the swarm's context is {CONTEXT}" in ended.complaint
    assert "shorten it" in ended.complaint
    assert ended.objects == [{"error": ended.complaint, "exit_code": FAILED}]
    assert swarm.is_idle()


def test_a_prompt_where_none_may_enter(swarm: Swarm) -> None:
    ended = swarm["ben"].ask("run", "hello")
    assert ended.exit_code == FAILED
    assert ended.complaint == f"ben@1 is not a source; ask amy at {swarm['amy'].address}"


@pytest.mark.parametrize(
    ("assignment", "why"),
    [
        ("colour=red", "colour is no setting of the swarm; there are batch,"),
        ("batch=0", "batch=0 cannot be; expected a whole number from 1 to 4096"),
        ("batch=", "batch= cannot be; expected a whole number from 1 to 4096"),
        ("context=long", "context=long cannot be; expected a whole number"),
        ("objective=beauty", "objective=beauty cannot be; expected latency or throughput"),
        ("micro_batch=3", "3 rows to a pass cannot be: batch is 2"),
        ("pin=amy:0-99", f"it ends at unit 99, the model has {N_BLOCKS + 2}"),
    ],
)
def test_a_setting_that_cannot_be(swarm: Swarm, assignment: str, why: str) -> None:
    ended = swarm["amy"].ask("set", assignment)
    assert ended.exit_code == USAGE
    assert why in ended.complaint


# --- others -------------------------------------------------------------------------------


def test_too_little_memory_in_the_whole_swarm(machine: Machine, tmp_path: Path) -> None:
    with Swarm(machine, tmp_path, "poor") as swarm:
        peer = swarm.start("amy", "--batch", 2, layers_mib=BLOCK_MIB * 3)
        eventually(
            lambda: "more memory" in peer.status().get("plan", {}).get("waiting_for", ""),
            swarm.story,
        )

        def refused() -> Ended | None:
            """The plan is known before the tokenizer is read."""
            ended = peer.ask("run", "hello")
            assert ended.exit_code == FAILED
            return None if "is still opening the model" in ended.complaint else ended

        ended = eventually(refused, swarm.story)
        assert "the swarm cannot serve: the model needs " in ended.complaint
        assert " MiB more memory than the only device offers" in ended.complaint
        assert swarm.is_idle()
        assert "more memory" in machine.edgeshard("status", *peer.client_flags()).stdout
        plan = machine.edgeshard("plan", "--live", *peer.client_flags())
        assert plan.exit_code == FAILED
        assert "infeasible: the model needs " in plan.stdout


def test_a_swarm_of_another_release(machine: Machine, tmp_path: Path) -> None:
    """It answers a Hello by a refusal in its own wire version."""
    swarm_key = open_security("later", ()).swarm_key
    port = free_port()
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as later,
        Swarm(machine, tmp_path, "later") as swarm,
    ):
        later.linger = 0
        later.bind(f"tcp://127.0.0.1:{port}")
        peer = swarm.start("amy", "--join", f"127.0.0.1:{port}")
        assert later.poll(int(DEADLINE_S * 1e3)), swarm.story()
        _, hello = decode_control(swarm_key, later.recv_multipart()[-1])
        assert isinstance(hello, Hello)
        detail = f"{hello.identity.peer} speaks wire versions 1-1, this swarm 99-99"
        refused = Refused("wire_version", detail)
        with context.socket(zmq.DEALER) as answer:
            answer.linger = 0
            answer.connect(f"tcp://{hello.identity.address}")
            data = msgspec.msgpack.encode((99, swarm_key, PeerId("later", 4), refused))
            answer.send_multipart([FROM_PEER, data])
            assert peer.process.wait(DEADLINE_S) == USAGE
        complaints = [line for line in peer.log.splitlines() if line.startswith("edgeshard: ")]
        assert complaints == [f"edgeshard: later@4 refused this peer: {detail}"]
        assert "Traceback" not in peer.log


def test_ctrl_c_while_starting(machine: Machine, tmp_path: Path) -> None:
    with Swarm(machine, tmp_path, "hasty") as swarm:
        peer = swarm.start("amy")
        eventually(lambda: "starting" in peer.log, swarm.story)
        assert peer.interrupt() == FAILED
        assert peer.log.splitlines()[-1] == "edgeshard: interrupted while starting"
        assert "Traceback" not in peer.log


def test_ports_are_free_again(machine: Machine, tmp_path: Path) -> None:
    """A peer that ended, however it did, holds nothing that its next life needs."""
    with Swarm(machine, tmp_path, "again") as swarm:
        peer = swarm.start("amy")
        eventually(peer.status, swarm.story)
        assert peer.interrupt() == 0
        for port in (peer.port, peer.port + 1):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
