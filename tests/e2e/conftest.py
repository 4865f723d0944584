from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.e2e.swarm import DEADLINE_S, EDGESHARD, Machine, eventually
from tests.model.tiny import save_model

N_BLOCKS = 6
CONTEXT = 2048
BLOCK_MIB = 20
"""Of one block in fp32, with the KV of two sequences of that context."""
# Nearly all of a block is its MLP, so that it weighs much and is computed quickly.
BIG_BLOCKS = {
    "num_hidden_layers": N_BLOCKS,
    "hidden_size": 256,
    "intermediate_size": 5120,
    "attention_bias": False,
    "max_position_embeddings": CONTEXT,
}


def save_tokenizer(directory: Path) -> None:
    """A token is a byte, and nothing ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(directory)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One cache for all, since what it says of this machine's kernels takes seconds to find.

    At the end no process may be left that was started with it."""
    directory = tmp_path_factory.mktemp("machine")
    model = save_model(directory / "tiny", "llama", eos_token_id=None, **BIG_BLOCKS)
    save_tokenizer(model)
    environment = os.environ | {
        "EDGESHARD_CACHE": str(directory / "cache"),
        "XDG_STATE_HOME": str(directory / "state"),
        # Peers of one user measure themselves one at a time: not waiting for those of others.
        "TMPDIR": str(directory),
        "HF_HUB_CACHE": str(directory / "hub"),
    }
    bare_mib = _bare_mib(environment, model, directory / "probe")
    yield Machine(environment, model, bare_mib, directory / "profiles")
    eventually(lambda: not _processes_with(directory), lambda: f"{_processes_with(directory)}")


def _processes_with(directory: Path) -> list[str]:
    """Command lines of the processes whose cache lies in ``directory``."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("EDGESHARD_CACHE", "").startswith(str(directory)):
                found.append(" ".join(process.cmdline()))
    return found


def _bare_mib(environment: dict[str, str], model: Path, state_dir: Path) -> int:
    """What a peer takes by itself here: it says so when it is given too little."""
    command = [*EDGESHARD, "peer", "--memory", "1MiB"]
    command += ["--model", str(model), "--state-dir", str(state_dir)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    said = re.search(r"a peer needs (\d+) MiB before any layer", done.stderr)
    assert done.returncode == 2, done.stderr
    assert said is not None, done.stderr
    return int(said[1])
