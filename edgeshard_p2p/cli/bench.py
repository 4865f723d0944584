"""``edgeshard bench``: many requests put to a running swarm."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeshard_p2p.cli.common import FAILED, USAGE, Finite, fail, one_line, peer_options
from edgeshard_p2p.cli.emulating import Emulation, devices_of, emulation_options
from edgeshard_p2p.config import parse_address

if TYPE_CHECKING:
    from edgeshard_p2p.core.messages import Address
    from edgeshard_p2p.load.bench import Wish
    from edgeshard_p2p.load.traffic import Served
    from edgeshard_p2p.net.security import Security

CONCURRENCY_MAX = 512
OF_RUNNING = {
    "peer_address": "--peer",
    "also": "--also",
    "swarm": "--swarm",
    "secret_file": "--secret-file",
}
OF_EMULATED = {"model": "--model", "flags": "--flag", "logs": "--logs", "shaper": "--shaper"}


@click.command("bench")
@click.option(
    "--requests",
    "n_requests",
    type=click.IntRange(1, 100_000),
    default=32,
    show_default=True,
    metavar="N",
    help="How many, all in all.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, CONCURRENCY_MAX),
    default=8,
    show_default=True,
    metavar="C",
    help="How many at once.",
)
@click.option(
    "--prompt",
    "prompt_tokens",
    type=click.IntRange(1, 2**20),
    default=64,
    show_default=True,
    metavar="TOKENS",
    help="Of each prompt; the nearest that words can get.",
)
@click.option(
    "--generate",
    type=click.IntRange(1, 2**16),
    default=64,
    show_default=True,
    metavar="TOKENS",
    help="Of each answer; it does not end before.",
)
@click.option(
    "--temperature",
    type=Finite(0, 100),
    default=0.0,
    show_default=True,
    help="0 is greedy; else each request draws with a seed of its own.",
)
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    metavar="FILE.png|svg",
    help="A picture: tokens over time, and how they were spread.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="HOST:PORT",
    help="Another source; requests go to each in turn.  May be repeated.",
)
@click.option(
    "--topology",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Not a running swarm: this machine stands in for the file's devices, as with "
    "scripts/testbed, and all of them are gone afterwards.",
)
@emulation_options
@peer_options
def bench_command(
    n_requests: int,
    concurrency: int,
    prompt_tokens: int,
    generate: int,
    temperature: float,
    seed: int,
    plot_file: Path | None,
    also: tuple[str, ...],
    topology: Path | None,
    peer_address: str,
    swarm: str,
    secret_file: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:  # fmt: skip
    """Put many requests to the running swarm, always so many at once, and say what their users
    would have seen: how long until the first token, between two tokens, tokens per second; for
    which part of the time each device had nothing to compute; and what the plan had promised.

    Requests beyond the swarm's batch wait for a slot, which counts as waiting for the first token.
    Exit code 1: a request failed.
    """
    from edgeshard_p2p.faults.devices import FaultError
    from edgeshard_p2p.load.bench import LoadError, Wish
    from edgeshard_p2p.net.security import open_security, read_secrets
    from edgeshard_p2p.topology import TopologyError

    concurrency = min(concurrency, n_requests)
    wish = Wish(n_requests, concurrency, prompt_tokens, generate, temperature, seed)
    _check_options(topology is not None, as_json)
    _check_plot(plot_file, as_json)
    emulated = None
    try:
        with one_line(peer_address, as_json):
            if topology is not None:
                told, served, emulated = _on_emulated(topology, Emulation(**wanted), wish)
            else:
                peers = [parse_address(text) for text in (peer_address, *also)]
                secrets = read_secrets(secret_file) if secret_file is not None else ()
                told, served = _on(peers, open_security(swarm, secrets), wish)
    except TopologyError as error:
        fail(str(error), USAGE, as_json)
    except FaultError as error:
        fail(str(error), error.exit_code, as_json)
    except LoadError as error:
        fail(str(error), FAILED, as_json)
    except KeyboardInterrupt:
        fail("cancelled", FAILED, as_json)
    told["emulated"] = emulated
    if plot_file is not None:
        _plot(served, plot_file, as_json)
        _say(f"drawn: {plot_file}")
    print(json.dumps(told) if as_json else _in_words(told), flush=True)
    sys.exit(FAILED if told["failed"] else 0)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _check_options(is_emulated: bool, as_json: bool) -> None:
    """Those of a running swarm, or those of one that is emulated."""
    given = click.get_current_context()
    stray = OF_RUNNING if is_emulated else OF_EMULATED
    for name, option in stray.items():
        if given.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            why = "is of a running swarm, not" if is_emulated else "goes only with"
            fail(f"{option} {why} --topology", USAGE, as_json)


def _on(
    peers: list[Address], security: Security, wish: Wish
) -> tuple[dict[str, Any], list[Served]]:
    from edgeshard_p2p.load.bench import Bench

    with _progress(wish.requests * wish.generate) as on_token:
        measured, served = Bench(peers, security).run(wish, _say, on_token)
    return measured.told(), served


def _on_emulated(
    topology: Path, wanted: Emulation, wish: Wish
) -> tuple[dict[str, Any], list[Served], dict[str, Any]]:
    from edgeshard_p2p.faults.ending import end_on_term

    end_on_term()
    with devices_of(topology, wanted, _say) as found:
        devices = found.devices
        with devices.inside(found.sources[0]):
            peers = [devices.address(name) for name in found.sources]
            told, served = _on(peers, devices.security, wish)
    return told, served, {**found.told(), "switch": devices.switched or None}


@contextmanager
def _progress(n_tokens: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=n_tokens, label="tokens", file=sys.stderr) as bar:
        lock = threading.Lock()  # Tokens come from many threads.

        def on_token() -> None:
            with lock:
                bar.update(1)

        yield on_token


def _check_plot(file: Path | None, as_json: bool) -> None:
    from edgeshard_p2p.cli.plot import PlotError, check_plot

    if file is not None:
        try:
            check_plot(file)
        except PlotError as error:
            fail(str(error), USAGE, as_json)


def _plot(served: list[Served], file: Path, as_json: bool) -> None:
    from edgeshard_p2p.cli.plot import PlotError, plot_load

    try:
        plot_load([one.token_at for one in served], [one.asked_at for one in served], file)
    except PlotError as error:
        fail(str(error), FAILED, as_json)


def _in_words(told: dict[str, Any]) -> str:
    lines = [
        f"{told['requests']} requests of {told['prompt_tokens']} + {told['generate']} tokens, "
        f"{told['concurrency']} at once: {told['tokens_per_s']:.1f} tokens/s "
        f"({told['tokens']} tokens in {told['seconds']:.1f} s)",
        f"first token    {_spread(told['ttft_ms'])}",
        f"between two    {_spread(told['inter_token_ms'])}",
        f"per token      {_spread(told['ms_per_token'])}, of an answer",
    ]
    if told["steady_tokens_per_s"]:
        lines.append(f"all decoding   {told['steady_tokens_per_s']:.1f} tokens/s")
    if (said := told["predicted"]) is not None:
        lines.append(
            f"predicted      {said['tokens_per_s']:.1f} tokens/s with {said['requests']} decoding, "
            f"{said['rows_per_pass']} to a pass; {said['ms_per_token']:.1f} ms/token of each"
        )
    if told["concurrency"] > told["batch"]:
        lines.append(f"room           for {told['batch']} at once in this plan; others had to wait")
    if told["plans"] > 1:
        lines.append(f"plans          {told['plans']}: the swarm changed its plan in the middle")
    if (emulated := told["emulated"]) is not None:
        lines.append(f"emulated       {'; '.join(_emulated_in_words(emulated))}")
    elif told["shaped"]:
        lines.append(f"emulated       links, inside {', '.join(told['shaped'])} (--shape)")
    idle = [f"{name} {100 * share:.0f} %" for name, share in told["bubbles"].items()]
    lines += [f"idle           {', '.join(idle)} of the time"] if idle else []
    names = {
        "failed": "failed",
        "refusals": "refused for now, and came again",
        "failovers": "moved",
        "cached_tokens": "tokens of prompts were cached, and not computed",
    }
    trouble = [f"{told[kind]} {words}" for kind, words in names.items() if told[kind]]
    lines += [f"trouble        {', '.join(trouble)}"] if trouble else []
    return "\n".join([*lines, *(f"  {error}" for error in told["errors"])])


def _emulated_in_words(emulated: dict[str, Any]) -> Iterator[str]:
    switch = emulated["switch"]
    yield from (f"{what}: {how}" for what, how in emulated.items() if what != "switch")
    if switch is not None:
        yield f"the switch took {switch['cpu_s']:.1f} s of a core"


def _spread(spread: dict[str, float]) -> str:
    p50, p99, most = (f"{spread[name]:.1f}" for name in ("p50", "p99", "max"))
    return f"p50 {p50} ms, p99 {p99} ms, at most {most} ms"
