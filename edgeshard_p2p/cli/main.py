"""``edgeshard`` and its commands."""

from __future__ import annotations

import click

from edgeshard_p2p import __version__
from edgeshard_p2p.cli.bench import bench_command
from edgeshard_p2p.cli.fault import fault
from edgeshard_p2p.cli.fetch import fetch, secret
from edgeshard_p2p.cli.peer import peer
from edgeshard_p2p.cli.plan import plan
from edgeshard_p2p.cli.run import run
from edgeshard_p2p.cli.selftest import selftest
from edgeshard_p2p.cli.simulate import simulate
from edgeshard_p2p.cli.status import set_setting, status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeshard")
def main() -> None:
    """Large language models on the devices you already have, together, with nobody in charge.

    Start `edgeshard peer` on each device, then ask any of them with `edgeshard run`.
    """


COMMANDS = (
    peer, run, status, set_setting, bench_command, plan, simulate, selftest, fault, fetch, secret
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)
