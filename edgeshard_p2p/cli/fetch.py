"""``edgeshard fetch`` and ``edgeshard secret``: what a swarm needs before it starts."""

from __future__ import annotations

import json
import secrets

import click

from edgeshard_p2p.cli.common import FAILED, fail

SECRET_BYTES = 32


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def fetch(as_json: bool) -> None:
    """Get the demo's small chat model (SmolLM2-135M-Instruct) and convert it, once."""
    from edgeshard_p2p.model import library
    from edgeshard_p2p.model.errors import ModelError

    try:
        model = library.fetch_demo_model(lambda line: click.echo(line, err=True))
    except ModelError as error:
        fail(str(error), FAILED, as_json)
    except KeyboardInterrupt:
        fail("cancelled; nothing was kept", FAILED, as_json)
    result = {"name": model.name, "path": str(model.path)}
    print(json.dumps(result) if as_json else f"{model.name} is at {model.path}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def secret(as_json: bool) -> None:
    """Print a new secret for a swarm: edgeshard secret > swarm.secret"""
    made = secrets.token_hex(SECRET_BYTES)
    print(json.dumps({"secret": made}) if as_json else made)
