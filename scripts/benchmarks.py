"""What ``scripts/bench`` runs.  Figures are for comparing within one run, on one machine."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.cli.common import Finite
from edgeshard_p2p.faults.ending import end_on_term

PROMPT = "Tell me about the sea."
HOP_TOKENS = 240
DECODE_TOKENS = 96
ROUNDS = 5
READY_TIMEOUT_S = 180


def say(text: str) -> None:
    click.echo(text, err=True)


def report(name: str, figures: dict[str, Any]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps({"bench": name, **figures, "machine": machine}), flush=True)


@click.group()
def main() -> None:
    """One JSON line on stdout for each benchmark."""


# ---- hop


def probe_peer(times_file: str, arguments: list[str]) -> None:
    """A real peer that writes down when it begins to encode hidden states, and when a stage's
    pass begins.  The monotonic clock is the same for all processes of a machine."""
    from edgeshard_p2p.cli import main as edgeshard
    from edgeshard_p2p.core.messages import FrameKind
    from edgeshard_p2p.runtime.driver import Driver
    from edgeshard_p2p.runtime.model_host import ModelHost

    times: list[tuple[str, float]] = []
    send_frame, forward, close = Driver._send_frame, ModelHost.forward, Driver.close

    def timed_send(self: Driver, effect: Any) -> None:
        if effect.header.kind is FrameKind.HIDDEN:
            times.append(("encode", time.monotonic()))
        send_frame(self, effect)

    def timed_forward(self: ModelHost, effect: Any, rows: Any) -> Any:
        if effect.job.role == "stage":
            times.append(("compute", time.monotonic()))
        return forward(self, effect, rows)

    async def told_close(self: Driver) -> None:
        Path(times_file).write_text(json.dumps(times))
        await close(self)

    # NOTE: the driver looks its methods up when it is made, so this comes first.
    Driver._send_frame, ModelHost.forward = timed_send, timed_forward  # type: ignore[method-assign]
    Driver.close = told_close  # type: ignore[method-assign]
    edgeshard(["peer", *arguments])


def bare_receiver(times_file: str, port: int) -> None:
    """The same way in without a peer: a loop that reads a PULL socket and wakes a thread."""
    import asyncio
    import queue
    import threading

    import uvloop
    import zmq

    begun: list[float] = []

    async def receive() -> None:
        socket = zmq.Context().socket(zmq.PULL)
        socket.bind(f"tcp://127.0.0.1:{port}")
        work: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def compute() -> None:
            while work.get():
                begun.append(time.monotonic())
            loop.call_soon_threadsafe(done.set)

        def drain() -> None:
            while socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                work.put(socket.recv_multipart(copy=False)[0].bytes)

        threading.Thread(target=compute, daemon=True).start()
        loop.add_reader(socket.fileno(), drain)
        loop.call_soon(drain)
        await done.wait()

    uvloop.run(receive())
    Path(times_file).write_text(json.dumps(begun))


def bare_hops_ms(scratch: Path, port: int, pause_s: float) -> list[float]:
    """What ZeroMQ and waking two threads cost here by themselves, with a frame's bytes, in a
    process that computes in between as a stage does."""
    import zmq

    times = scratch / "bare.json"
    receiver = subprocess.Popen([sys.executable, __file__, "_bare", str(times), str(port)])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(f"tcp://127.0.0.1:{port}")
    sent = []
    try:
        for _ in range(HOP_TOKENS):
            ends_at = time.monotonic() + pause_s
            while time.monotonic() < ends_at:
                pass
            sent.append(time.monotonic())
            socket.send_multipart([bytes([1]) * 78, bytes(4 * 576)], copy=False)
        socket.send_multipart([b"", b""])
        receiver.wait(30)
    finally:
        receiver.kill()
        receiver.wait()
        context.destroy(linger=0)
    begun = json.loads(times.read_text())
    # The first ones wait for the connection.
    return sorted((b - a) * 1e3 for a, b in zip(sent[20:], begun[20:], strict=True))


@contextmanager
def peers(scratch: Path, commands: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = []
    try:
        for index, command in enumerate(commands):
            with (scratch / f"peer{index}.log").open("wb") as log:
                started.append(subprocess.Popen(command, stderr=log, stdout=log))
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        for process in started:
            process.wait(30)


def edgeshard(*arguments: str) -> dict[str, Any]:
    """The JSON that an ``edgeshard`` command prints; empty when it fails."""
    command = [sys.executable, "-m", "edgeshard_p2p", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def wait_until_active(address: str, scratch: Path) -> dict[str, Any]:
    ends_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < ends_at:
        status = edgeshard("status", "--peer", address)
        if status and status["plan"]["state"] == "active":
            return status
        time.sleep(1)
    logs = "\n".join(log.read_text() for log in sorted(scratch.glob("*.log")))
    raise click.ClickException(f"the peers did not get ready:\n{logs}")


@main.command()
@click.option("--port", default=7951, show_default=True, help="First of four ports.")
def hop(port: int) -> None:
    """Start of encode on one peer's loop to start of compute on the next peer, loopback.

    ``bare`` is the same way for the same bytes through ZeroMQ, a loop and a thread alone."""
    from edgeshard_p2p.model.library import fetch_demo_model

    model = fetch_demo_model(say).path
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        first, second = f"127.0.0.1:{port}", f"127.0.0.1:{port + 2}"
        common = ["--no-mdns", "--model", str(model), "--min-members", "2"]
        # The source has no room for more than its own part; everything else is one stage.
        ends = [
            ["--listen", first, "--memory", "900MiB", "--name", "source"],
            ["--listen", second, "--join", first, "--no-source", "--name", "stage"],
        ]
        commands = []
        for index, end in enumerate(ends):
            times = str(scratch / f"times{index}.json")
            state = ["--state-dir", str(scratch / f"state{index}")]
            commands.append([sys.executable, __file__, "_peer", times, *common, *state, *end])
        say("starting two peers; they measure themselves first")
        with peers(scratch, commands):
            plan = wait_until_active(first, scratch)["plan"]
            run = ["run", PROMPT, "--raw", "--peer", first, "--max-tokens", str(HOP_TOKENS)]
            answer = edgeshard(*run, "--temperature", "1.5", "--seed", "1")
        bare_ms = bare_hops_ms(scratch, port, answer["ms_per_token"] / 2e3)
        times_of = [json.loads((scratch / f"times{i}.json").read_text()) for i in range(2)]
    sent = [at for what, at in times_of[0] if what == "encode"]
    begun = [at for what, at in times_of[1] if what == "compute"]
    if len(sent) != len(begun) or len(sent) < 50:
        raise click.ClickException(f"{len(sent)} sends and {len(begun)} passes; stages {plan}")
    hops_ms = sorted((b - a) * 1e3 for a, b in zip(sent[1:], begun[1:], strict=True))
    report(
        "hop",
        {
            "hops": len(hops_ms),
            "p50_ms": round(statistics.median(hops_ms), 3),
            "p99_ms": round(hops_ms[int(len(hops_ms) * 0.99)], 3),
            "max_ms": round(hops_ms[-1], 3),
            "bare_p50_ms": round(statistics.median(bare_ms), 3),
            "ms_per_token": answer["ms_per_token"],
            "hidden_size": 576,
        },
    )


# ---- decode


@main.command()
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
def decode(dtype: str) -> None:
    """One engine on one core against transformers' generate, taking turns."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgeshard_p2p.model.engine import use_one_thread
    from edgeshard_p2p.model.library import fetch_demo_model, manifest_digest
    from edgeshard_p2p.model.text import Tokenizer
    from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    use_one_thread()
    found = fetch_demo_model(say)
    prompt = Tokenizer(found.path).encode(PROMPT, raw=False)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    reference = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch_dtype)
    digest = manifest_digest(found.path)
    runs: dict[str, Callable[[], list[int]]] = {
        "transformers": lambda: _generate(reference, prompt),
        "fast": _engine_run(found.path, digest, dtype, 0, prompt),
        "exact": _engine_run(found.path, digest, dtype, EXACT_TILE_ROWS, prompt),
    }
    tokens: dict[str, list[int]] = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        say(f"round {number + 1} of {ROUNDS}")
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rate = {name: DECODE_TOKENS / statistics.median(s) for name, s in seconds.items()}
    report(
        "decode",
        {
            "dtype": dtype,
            "tokens_per_s": {name: round(value, 1) for name, value in rate.items()},
            "fast_over_transformers": round(rate["fast"] / rate["transformers"], 3),
            "exact_over_transformers": round(rate["exact"] / rate["transformers"], 3),
            "same_tokens": tokens["fast"] == tokens["exact"] == tokens["transformers"],
        },
    )


def _generate(reference: Any, prompt: tuple[int, ...]) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    out = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=DECODE_TOKENS,
        min_new_tokens=DECODE_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return list(out[0, len(prompt) :].tolist())


def _engine_run(
    path: Path, digest: str, dtype: str, tile_rows: int, prompt: tuple[int, ...]
) -> Callable[[], list[int]]:
    """A function that answers ``prompt`` with an engine that holds the whole model."""
    import torch

    from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
    from edgeshard_p2p.core.sampling import Sampling
    from edgeshard_p2p.core.work import CacheKey, RowGroup
    from edgeshard_p2p.model.checkpoint import open_checkpoint
    from edgeshard_p2p.model.engine import Engine

    engine = Engine(open_checkpoint(path, digest, "bench"), dtype, tile_rows, "cpu")
    units = UnitRange(0, engine.spec.n_units)
    for unit in units:
        engine.load(unit)
    engine.reserve("bench", units, 1, 512)
    key = CacheKey(RequestId(PeerId("bench", 0), 0), "bench")

    def run() -> list[int]:
        engine.open(key)
        known, position = list(prompt), 0
        while len(known) < len(prompt) + DECODE_TOKENS:
            new = known[position:]
            group = RowGroup(key, position, len(new), Sampling())
            (token,) = engine.forward(units, [group], torch.tensor(new)).tokens
            assert token is not None
            position = len(known)
            known.append(token)
        engine.release(key)
        return known[len(prompt) :]

    return run


# ---- plan


@main.command()
@click.option("--seeds", default=5, show_default=True, help="Pools of different devices.")
@click.option("--objective", type=click.Choice(["latency", "throughput"]), help="[default: both]")
def plan(seeds: int, objective: str | None) -> None:
    """How long planning takes: the paper's pool, 8 and 12 devices all different, and 16 to 32 that
    are searched in part, against their bounds.  Throughput is for 8 in flight, all sizes of
    micro-batch."""
    from edgeshard_p2p.specs import shipped_spec
    from edgeshard_p2p.topology import read_topology

    result: dict[str, Any] = {}
    testbed = read_topology(Path(__file__).parents[1] / "topology" / "paper-testbed.toml")
    for name in ("llama2-7b", "llama2-70b"):
        model = shipped_spec(name)
        assert model is not None
        for name_of_goal, goal, batch in _goals(objective):
            made = testbed.scenario(model, dtype="fp32", context=128, batch=batch, goal=goal)
            times = [_timed(made.snapshot)[1] for _ in range(5)]
            key = f"paper_pool_{model.n_units}_units_{name_of_goal}_s"
            result[key] = round(statistics.median(times), 4)
    for n_devices in (8, 12, 16, 24, 32):
        for name_of_goal, goal, batch in _goals(objective):
            key = f"{n_devices}_different_82_units_{name_of_goal}"
            result[key] = told = _pools(n_devices, seeds, goal, batch)
            print(f"plan: {key}: {told}", file=sys.stderr)
    print(json.dumps(result))


def _goals(objective: str | None) -> list[tuple[str, Any, int]]:
    from edgeshard_p2p.core.plan import Goal

    goals = [("latency", Goal(), 1), ("throughput", Goal("throughput"), 8)]
    return [goal for goal in goals if objective in (None, goal[0])]


def _timed(snapshot: Any) -> tuple[Any, float]:
    from edgeshard_p2p.core.planner import answer

    begun = time.perf_counter()
    found = answer(snapshot)
    return found, time.perf_counter() - begun


def _pools(n_devices: int, seeds: int, goal: Any, batch: int) -> dict[str, Any]:
    """Plans for pools of different devices, against what no plan can be below."""
    from msgspec.structs import replace

    from edgeshard_p2p.sim.pools import different_devices
    from edgeshard_p2p.specs import shipped_spec

    model = shipped_spec("llama2-70b")
    assert model is not None
    times, gaps = [], []
    for seed in range(seeds):
        pool = different_devices(n_devices, seed, model, goal)
        pool = replace(pool, workload=replace(pool.workload, batch=batch))
        found, took_s = _timed(pool)
        times.append(took_s)
        if found.prediction is not None and found.bound_us:
            gaps.append(found.prediction.iteration_us / found.bound_us - 1)
    return {
        "pools": seeds,
        "no_plan": seeds - len(gaps),
        "gap_median": round(statistics.median(gaps), 4) if gaps else None,
        "gap_max": round(max(gaps), 4) if gaps else None,
        "median_s": round(statistics.median(times), 3),
        "max_s": round(max(times), 3),
    }


# ---- paper


@main.command()
@click.option("--seeds", default=250, show_default=True, help="Pools of each kind.")
def paper(seeds: int) -> None:
    """Exact beside the paper's algorithms on random pools, short of memory and not."""
    from edgeshard_p2p.core.plan import OBJECTIVES
    from edgeshard_p2p.sim.comparison import MEMORY, compared, random_pool, tally

    result: dict[str, Any] = {objective: {} for objective in OBJECTIVES}
    for objective, of_memory in result.items():
        for memory, times in MEMORY.items():
            pools = (random_pool(seed, objective, times) for seed in range(seeds))
            of_memory[memory] = told = tally([compared(pool) for pool in pools])
            say(f"{objective}, {memory}: {told}")
    report("paper", result)


# ---- recovery


@main.command()
@click.option("--quick", is_flag=True, help="5 faults of each kind, in place of 30 and 10.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["kill", "freeze", "rejoin", "partition", "slow"]),
    help="May be repeated.  [default: all]",
)
def recovery(quick: bool, kinds: tuple[str, ...]) -> None:
    """How long until a loss is noticed and tokens come again, and whether they are the same.

    Three peers on loopback in three stages, the last one lost at token 32 of 64."""
    from recovery import recovery as measured

    told, is_whole = measured(kinds, quick, say)
    report("recovery", told)
    sys.exit(0 if is_whole else 1)


# ---- together


@main.command()
@click.option("--peers", "n_peers", type=click.IntRange(1, 3), default=2, show_default=True)
@click.option("--requests", "n_requests", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option("--numerics", type=click.Choice(["exact", "fast"]), default="exact")
def together(n_peers: int, n_requests: int, numerics: str) -> None:
    """Requests one after another and all at once on the same swarm, 64 tokens in and 64 out."""
    from together import together as measured

    told, is_same = measured(n_peers, n_requests, numerics, say)
    report("together", told)
    sys.exit(0 if is_same or numerics == "fast" else 1)


# ---- throughput


@main.command()
def throughput() -> None:
    """Two devices of 0.8 core with 16 requests and four of 0.4 core with 32, each against one such
    device with 8: tokens per second; and what bubbles, a lone request and a saturated loop cost.
    Exit code 1: a figure is not what is wanted of it, which stands beside it."""
    from throughput import throughput as measured

    from edgeshard_p2p.faults.devices import FaultError
    from edgeshard_p2p.load.bench import LoadError

    try:
        told, is_met = measured(say)
    except (FaultError, LoadError) as error:
        say(f"given up: {error}")
        sys.exit(1)
    report("throughput", told)
    sys.exit(0 if is_met else 1)


# ---- overload


@main.command()
@click.option("--minutes", type=Finite(0.5, 120), default=10.0, show_default=True)
def overload(minutes: float) -> None:
    """Ten times as many users as two peers have room for, all the time: memory, refusals, whether
    every answer is that of an undisturbed run.  Exit code 1: something was not as it should be."""
    from overload import overload as measured

    told, is_clean = measured(minutes, say)
    report("overload", told)
    sys.exit(0 if is_clean else 1)


# ---- crowd


@main.command()
@click.option("--seeds", default=20, show_default=True, help="Deaths.")
@click.option("--peers", "n_peers", default=200, show_default=True)
def crowd(seeds: int, n_peers: int) -> None:
    """A death among many simulated peers that lose 2 % of their messages: in how many periods of
    probing (0.5 s) all others know, and what a peer sends per second while nothing happens."""
    from edgeshard_p2p.sim.crowd import LOSS, run_death, run_steady, tally

    deaths = []
    for seed in range(seeds):
        deaths.append(run_death(seed, n_peers))
        if seed % 20 == 19:
            say(f"{seed + 1} of {seeds}")
    steady = {n: run_steady(0, n) for n in (n_peers // 8, n_peers // 4, n_peers // 2, n_peers)}
    report(
        "crowd",
        {
            "peers": n_peers,
            "loss": LOSS,
            **tally(deaths),
            "bytes_per_s": {n: round(sum(kinds.values())) for n, kinds in steady.items()},
            "bytes_per_s_by_kind": {k: round(n) for k, n in steady[n_peers].items()},
        },
    )


# ---- wire


@main.command()
def wire() -> None:
    """Bytes given to ZeroMQ for one row of one decode token on one hop; acks apart."""
    from edgeshard_p2p.core.ids import PeerId
    from edgeshard_p2p.core.messages import FrameAck, FrameHeader, FrameKind, RowGroupHeader
    from edgeshard_p2p.wire.codec import encode_control
    from edgeshard_p2p.wire.frames import encode_header

    hidden_size, item_bytes = 576, 4
    peer = PeerId("a-rather-long-host-name-0123456789-ab12", 1_000)
    group = RowGroupHeader(7, 1_000_000, 15, 131_071, 1, 131_071, 82, 1)
    header = FrameHeader(
        1, FrameKind.HIDDEN, peer.tag, bytes(8), 40, 10**6, 10**9, 10**9, 10**9, 10**6, 2, 1,
        (1, hidden_size), (group,),
    )  # fmt: skip
    ack = FrameAck("0" * 16, 40, 10**6, 10**9, 10**9 + 8)
    header_bytes, tensor_bytes = len(encode_header(header)), hidden_size * item_bytes
    report(
        "wire",
        {
            "header_bytes": header_bytes,
            "tensor_bytes": tensor_bytes,
            "frame_bytes": header_bytes + tensor_bytes,
            "allowed_bytes": tensor_bytes + 128,
            "ack_bytes": len(encode_control(bytes(8), peer, ack)),
        },
    )


# ---- start


@main.command()
def start() -> None:
    """Median wall time of an import and of --help."""
    commands = {
        "import_s": [sys.executable, "-c", "import edgeshard_p2p"],
        "help_s": [sys.executable, "-m", "edgeshard_p2p", "--help"],
    }
    figures = {}
    for name, command in commands.items():
        seconds = []
        for _ in range(2 * ROUNDS + 1):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        figures[name] = round(statistics.median(seconds), 3)
    report("start", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["_peer"]:
        probe_peer(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["_bare"]:
        bare_receiver(sys.argv[2], int(sys.argv[3]))
    else:
        end_on_term()
        main()
