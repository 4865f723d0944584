"""What the commands share: where the peer is, how errors end a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from edgeshard_p2p.config import DEFAULT_LISTEN, ConfigError, parse_address

FAILED, USAGE = 1, 2
ANSWER_TIMEOUT_S = 10.0
"""For an answer that a peer has at hand."""

Answer = TypeVar("Answer")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Finite(click.FloatRange):
    """A range without what is no number: that is neither below nor above anything."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def complain(text: str, exit_code: int, as_json: bool) -> None:
    """One line on stderr, with --json also an object on stdout."""
    if as_json:
        print(json.dumps({"error": text, "exit_code": exit_code}), flush=True)
    click.echo(f"edgeshard: {text}", err=True)


def fail(text: str, exit_code: int = FAILED, as_json: bool = False) -> NoReturn:
    """Complain, and end."""
    complain(text, exit_code, as_json)
    sys.exit(exit_code)


def peer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--peer, --swarm, --secret-file, --json of the commands that talk to a running peer."""
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    return reach_options(as_json(function))


def reach_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--peer, --swarm, --secret-file: where a running peer is, and what opens it.  Each may come
    from the environment as well."""
    options: list[Decorator] = [
        click.option("--peer", "peer_address", default=DEFAULT_LISTEN, show_default=True,
                     envvar="EDGESHARD_PEER", metavar="HOST:PORT", help="The peer to talk to."),
        click.option("--swarm", default="default", show_default=True, envvar="EDGESHARD_SWARM",
                     help="Its swarm."),
        click.option("--secret-file", type=click.Path(path_type=Path), metavar="FILE",
                     envvar="EDGESHARD_SECRET_FILE", help="The swarm's secret, if it has one."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@contextmanager
def one_line(peer_address: str, as_json: bool) -> Iterator[None]:
    """Every way in which a conversation with that peer can fail becomes one line, and the end."""
    from edgeshard_p2p.net.client import NoAnswer
    from edgeshard_p2p.net.security import SecretError
    from edgeshard_p2p.wire.errors import WireError

    try:
        yield
    except (ConfigError, SecretError) as error:
        fail(str(error), USAGE, as_json)
    except NoAnswer as error:
        fail(str(error), FAILED, as_json)
    except WireError as error:
        fail(f"{peer_address} gives an answer of another release: {error}", FAILED, as_json)


@contextmanager
def talking(
    peer_address: str, swarm: str, secret_file: Path | None, as_json: bool
) -> Iterator[Any]:
    """A Client for the peer."""
    from edgeshard_p2p.net.client import Client
    from edgeshard_p2p.net.security import open_security, read_secrets

    with one_line(peer_address, as_json):
        address = parse_address(peer_address)
        secrets = read_secrets(secret_file) if secret_file is not None else ()
        with Client(address, open_security(swarm, secrets)) as client:
            yield client


def ask(
    request: Any,
    expected: type[Answer],
    peer_address: str,
    swarm: str,
    secret_file: Path | None,
    as_json: bool,
) -> Answer:
    """The one answer to ``request``; every way in which there can be none ends the command."""
    from edgeshard_p2p.wire.client import Failed

    with talking(peer_address, swarm, secret_file, as_json) as client:
        client.send(request)
        answer = next(client.answers(ANSWER_TIMEOUT_S))
    if isinstance(answer, Failed):
        fail(answer.error, USAGE if answer.is_usage else FAILED, as_json)
    if not isinstance(answer, expected):
        fail(f"{peer_address} gives an answer of another release", FAILED, as_json)
    return answer
