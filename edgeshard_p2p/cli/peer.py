"""``edgeshard peer``: the one program that every device runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from edgeshard_p2p.cli.common import FAILED, USAGE, complain, fail
from edgeshard_p2p.config import DEFAULT_LISTEN, ConfigError, PeerConfig, peer_config


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file that may hold any of these options.",
)
@click.option(
    "--model",
    metavar="NAME|PATH",
    help="Model to serve: a directory, a .gguf file, or a name in the library.  "
    "Without it the swarm's is taken.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help=f"Control port; data uses the next one.  [default: {DEFAULT_LISTEN}]",
)
@click.option("--advertise", metavar="HOST", help="Address that other peers reach this one at.")
@click.option(
    "--join",
    multiple=True,
    metavar="HOST:PORT",
    help="A peer to meet, where multicast is blocked.  May be repeated.",
)
@click.option("--mdns/--no-mdns", default=None, help="Multicast discovery.  [default: on]")
@click.option("--name", metavar="NAME", help="[default: host name and 4 digits]")
@click.option(
    "--swarm", metavar="NAME", help="Peers of other swarms are ignored.  [default: default]"
)
@click.option("--secret-file", metavar="FILE", help="The swarm's secret; see `edgeshard secret`.")
@click.option(
    "--source/--no-source", default=None, help="Whether prompts may enter here.  [default: source]"
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="All that this process may use, e.g. 4GiB.  [default: 80 % of what is available]",
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="[default: fp32]")
@click.option("--numerics", type=click.Choice(["exact", "fast"]), help="[default: exact]")
@click.option("--context", type=int, metavar="TOKENS", help="[default: 2048]")
@click.option("--batch", type=int, metavar="N", help="Sequences in flight.  [default: 4]")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    help="What plans are good at: one answer at a time, or many at once.  [default: latency]",
)
@click.option(
    "--micro-batch",
    type=int,
    metavar="N",
    help="Rows of a pass, where several requests run.  [default: what gives most tokens per "
    "second by what was measured]",
)
@click.option(
    "--schedule",
    type=click.Choice(["no-bubbles", "bubbles"]),
    help="bubbles: a source's rows all come back before any sets out again, for comparison.  "
    "[default: no-bubbles]",
)
@click.option(
    "--prompt",
    type=int,
    metavar="TOKENS",
    help="Expected; with --generate prefill "
    "counts in the plan for latency.  [default: it does not]",
)
@click.option("--generate", type=int, metavar="TOKENS", help="Expected.")
@click.option(
    "--first-layer",
    type=click.Choice(["block", "embedding"]),
    help="The last unit that each source keeps.  [default: block]",
)
@click.option("--device", help="[default: cpu]")
@click.option("--state-dir", metavar="DIR", help="Identity and measurements.")
@click.option(
    "--min-members",
    type=int,
    metavar="N",
    help="Make no plan before so many peers are ready.  [default: 1]",
)
@click.option(
    "--standby/--no-standby",
    default=None,
    help="In idle time load layers of the plan that would follow a loss, as far as memory allows.  "
    "[default: off]",
)
@click.option(
    "--shape",
    metavar="FILE",
    help="Emulated links: hold what is sent up, as long as the file's links would take for it.  "
    "Not for use; for trying what a slower network would do.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
@click.option("--json", "as_json", is_flag=True, help="Log lines as JSON objects on stdout.")
def peer(config: Path | None, verbose: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Run this device's part of the swarm until Ctrl-C."""
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    try:
        parsed = peer_config(given, config)
    except ConfigError as error:
        fail(str(error), USAGE, as_json)
    _log_to(as_json, verbose)
    stop = _run(parsed, as_json)
    if stop.exit_code:
        complain(stop.text, stop.exit_code, as_json)
    _end(stop.exit_code)


def _run(config: PeerConfig, as_json: bool) -> Any:
    try:
        return _start(config, as_json)
    except KeyboardInterrupt:
        complain("interrupted while starting", FAILED, as_json)
        _end(FAILED)


def _start(config: PeerConfig, as_json: bool) -> Any:
    logging.getLogger("edgeshard").info("starting (loading torch takes a few seconds)")
    from edgeshard_p2p.runtime import kernels

    unusable = kernels.prepare()  # Sets limits that torch reads when it is imported, just below.
    from edgeshard_p2p.model.errors import ModelError
    from edgeshard_p2p.net.security import SecretError
    from edgeshard_p2p.net.transport import BindError
    from edgeshard_p2p.runtime.peer import PeerError, run_peer
    from edgeshard_p2p.runtime.state import StateError

    try:
        return run_peer(config, unusable)
    except PeerError as error:
        fail(str(error), error.exit_code, as_json)
    except SecretError as error:
        fail(str(error), USAGE, as_json)
    except (BindError, ModelError, StateError) as error:
        fail(str(error), FAILED, as_json)


def _end(exit_code: int) -> NoReturn:
    """NOTE: not by way of the interpreter.  It would stop the compute thread wherever it is, and
    in the middle of torch that aborts the process; and after a Ctrl-C that came in the middle of
    some import it ends by that signal, whatever the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "text": record.getMessage(),
            }
        )


def _log_to(as_json: bool, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    text = logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(_JsonLines() if as_json else text)
    logger = logging.getLogger("edgeshard")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
