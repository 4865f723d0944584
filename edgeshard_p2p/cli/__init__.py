"""The command line: parses, builds the configuration, calls, prints.

Commands import what they need when they run, so that --help is quick.
"""

from __future__ import annotations

from edgeshard_p2p.cli.main import main

__all__ = ["main"]
