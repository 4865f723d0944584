"""A model that was opened before is told of at once, and opened meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvloop
from msgspec.structs import replace

from edgeshard_p2p.model import known_specs, library
from edgeshard_p2p.model.library import LocalModel
from edgeshard_p2p.runtime.model_host import ModelHost
from tests.runtime.living import live_apart, peer, whole_model
from tests.runtime.waiting import DEADLINE_S, until_async


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_apart(tmp_path, monkeypatch)


def test_spec_is_known_after_the_first_time(model: Path) -> None:
    digest = library.manifest_digest(model)
    assert known_specs.of(LocalModel("tiny", model), digest) is None
    spec = ModelHost("cpu", {}).open(model, digest, "tiny")
    assert known_specs.of(LocalModel("tiny", model), digest) == spec
    assert known_specs.of(LocalModel("other", model), digest) == replace(spec, name="other")
    assert known_specs.of(LocalModel("tiny", model), "0" * 64) is None
    (file,) = (library.cache_dir() / "specs").iterdir()
    for damaged in (b"", b"[]", file.read_bytes().replace(digest.encode(), b"f" * 64)):
        file.write_bytes(damaged)
        assert known_specs.of(LocalModel("tiny", model), digest) is None


def test_peer_is_planned_while_its_model_is_opened(tmp_path: Path, model: Path) -> None:
    """By order, not by time: the host is there after the plan, or never."""

    async def first_life() -> None:
        async with peer(tmp_path, model) as life:
            await until_async(life.core.planning.dispatchable, "a plan that serves")

    async def second_life() -> None:
        asked, release = threading.Event(), threading.Event()

        def slow_host() -> ModelHost:
            asked.set()
            assert release.wait(DEADLINE_S)
            return host

        host = ModelHost("cpu", {})
        async with peer(tmp_path, model, slow_host) as life:
            choice = lambda: life.core.planning.replan.choice  # noqa: E731
            await until_async(lambda: choice() and choice().plan, "a plan")
            await until_async(asked.is_set, "the host is made")
            assert life.core.planning.dispatchable() is None
            release.set()
            await until_async(life.core.planning.dispatchable, "a plan that serves")

    uvloop.run(first_life())
    uvloop.run(second_life())


def test_what_was_noted_is_compared_with_the_model(tmp_path: Path, model: Path) -> None:
    digest = library.manifest_digest(model)
    spec = ModelHost("cpu", {}).open(model, digest, "tiny")
    known_specs.keep(replace(spec, head_params=spec.head_params + 1))

    async def main() -> None:
        async with peer(tmp_path, model) as life:
            await until_async(lambda: life.core.local.trouble, "trouble")
            assert "was not true" in life.core.local.trouble

    uvloop.run(main())
    assert known_specs.of(LocalModel("tiny", model), digest) == spec


def test_peer_joins_before_it_has_imported_what_opens_models() -> None:
    script = "import edgeshard_p2p.runtime.peer, sys; print('transformers' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert told.stdout.strip() == "False"
