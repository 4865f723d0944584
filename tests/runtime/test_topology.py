"""Topology files are read whole or refused in one line; what they say is what scenarios hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.layout import Layout, latency_us
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Framing, Goal, Link, RowTimes, Stage
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.specs import shipped, shipped_spec
from edgeshard_p2p.topology import TopologyError, read_topology

SHIPPED = sorted((Path(__file__).parents[2] / "topology").glob("*.toml"))

MODEL = ModelSpec(
    name="toy",
    digest="0" * 64,
    family="llama",
    hidden_size=8,
    vocab_size=100,
    max_context=64,
    embedding_params=800,
    block_params=(100, 300),
    head_params=1000,
    tied_params=0,
    kv_width=16,
)

GOOD = """
sources = ["pc-2"]

[[device]]
name = "big"
class = "gpu"
role = "cloud"
memory_gib = 3

[[device]]
name = "pc"
class = "desk"
count = 3

[class.gpu]
memory_gib = 1

[class.gpu.times.toy]
decode_ms = [0.0, 0.0001, 2, 3.5]
prefill_ms = { 32 = 8, 128 = [0, 9, 10, 11] }

[class.desk]
memory_gib = 0.5

[class.desk.times.toy]
decode_ms = { 4 = 5, 1 = 4 }
prefill_ms = 20

[class.spare]
memory_gib = 2

[class.spare.times.toy]
decode_ms = 1

[link]
default_mbps = 80
per_message_ms = 0.5
delay_ms = 1
"""


def _file(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "lab.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def _scenario(tmp_path: Path, text: str, model: ModelSpec = MODEL, **asked: Any) -> Scenario:
    settings: dict[str, Any] = {"dtype": "fp32", "context": 64, "batch": 2, **asked}
    return read_topology(_file(tmp_path, text)).scenario(model, **settings)


def _links(scenario: Scenario) -> dict[tuple[str, str], Link]:
    return {(link.a, link.b): link for link in scenario.snapshot.links}


def _spec(name: str) -> ModelSpec:
    spec = shipped_spec(name)
    assert spec is not None
    return spec


def test_devices_and_their_order(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path, GOOD)
    devices = scenario.snapshot.devices
    assert [device.peer for device in devices] == [
        PeerId(name, 1) for name in ("big", "pc-1", "pc-2", "pc-3")
    ]
    assert [device.is_source for device in devices] == [False, False, True, False]
    assert [device.budget_bytes for device in devices] == [3 * 2**30, *(2**29,) * 3]
    assert scenario.order == ("pc-2", "big", "pc-1", "pc-3")
    assert scenario.cloud == "big"
    assert scenario.notes == ()


def test_count_of_one_is_numbered(tmp_path: Path) -> None:
    one = GOOD.replace("count = 3", "count = 1").replace('"pc-2"', '"pc-1"')
    assert _scenario(tmp_path, one).order == ("pc-1", "big")


def test_times_by_unit_by_rows_and_by_chunk(tmp_path: Path) -> None:
    big, desk = _scenario(tmp_path, GOOD).snapshot.devices[:2]
    assert big.unit_us == (0, 1, 2000, 3500)  # what takes time at all takes 1 us
    assert big.decode == ()
    # A number is that of every block; the head's follows by parameters, 1000 to 200 on average.
    assert big.prefill == (
        RowTimes(32, (0, 8000, 8000, 40000)),
        RowTimes(128, (0, 9000, 10000, 11000)),
    )
    assert desk.unit_us == (0, 4000, 4000, 20000)
    assert desk.decode == (RowTimes(4, (0, 5000, 5000, 25000)),)
    assert desk.prefill == (RowTimes(128, (0, 20000, 20000, 100000)),)


def test_workload_and_framing(tmp_path: Path) -> None:
    goal = Goal("throughput", micro_batch=2)
    snapshot = _scenario(tmp_path, GOOD, goal=goal).snapshot
    assert snapshot.goal == goal
    assert snapshot.framing == Framing()
    assert snapshot.workload.first_layer == "block"
    assert (snapshot.workload.dtype, snapshot.workload.context) == ("fp32", 64)
    assert (snapshot.workload.batch, snapshot.workload.numerics) == (2, "exact")
    assert snapshot.model == MODEL


def test_first_layer_kv_and_framing_of_the_file(tmp_path: Path) -> None:
    text = 'first_layer = "embedding"\nkv = false\n' + GOOD
    text += "row_overhead_bytes = 0\ntoken_bytes = 4\n"
    snapshot = _scenario(tmp_path, text).snapshot
    assert snapshot.workload.first_layer == "embedding"
    assert snapshot.model.kv_width == 0
    assert snapshot.framing == Framing(0, 4)
    asked: dict[str, Any] = {"first_layer": "block", "kv": True, "framing": Framing()}
    overridden = _scenario(tmp_path, text, **asked).snapshot
    assert overridden.workload.first_layer == "block"
    assert overridden.model == MODEL
    assert overridden.framing == Framing()
    assert _scenario(tmp_path, GOOD, kv=False).snapshot.model.kv_width == 0


def test_links_are_the_default_in_both_directions(tmp_path: Path) -> None:
    links = _links(_scenario(tmp_path, GOOD))
    assert len(links) == 4 * 3
    assert links["big", "pc-1"] == Link("big", "pc-1", 1000, 500, 10_000_000)
    assert links["pc-1", "big"] == Link("pc-1", "big", 1000, 500, 10_000_000)


PAIRS = """
[[link.pair]]
a = "pc-1"
b = "big"
mbps = 8
delay_ms = 0

[[link.pair]]
a = "gpu"
b = "pc-2"
mbps = 16

[[link.pair]]
a = "desk"
b = "gpu"
mbps = 24
per_message_ms = 0

[[link.pair]]
a = "desk"
b = "desk"
mbps = 32
"""


def test_the_more_specific_pair_wins(tmp_path: Path) -> None:
    links = _links(_scenario(tmp_path, GOOD + PAIRS))
    assert links["big", "pc-1"] == Link("big", "pc-1", 0, 500, 1_000_000)
    assert links["pc-2", "big"] == Link("pc-2", "big", 1000, 500, 2_000_000)
    assert links["pc-3", "big"] == Link("pc-3", "big", 1000, 0, 3_000_000)
    assert links["pc-3", "pc-1"] == Link("pc-3", "pc-1", 1000, 500, 4_000_000)


@pytest.mark.parametrize(
    ("first", "second"), [(("pc-1", "big"), ("big", "pc-1")), (("pc-1", "gpu"), ("desk", "big"))]
)
def test_of_two_as_specific_the_later_wins(
    tmp_path: Path, first: tuple[str, str], second: tuple[str, str]
) -> None:
    pairs = "".join(
        f'[[link.pair]]\na = "{a}"\nb = "{b}"\nmbps = {mbps}\n'
        for (a, b), mbps in ((first, 8), (second, 16))
    )
    assert _links(_scenario(tmp_path, GOOD + pairs))["big", "pc-1"].bytes_per_s == 2_000_000


def test_without_a_default_only_pairs_are_linked(tmp_path: Path) -> None:
    pair = '[[link.pair]]\na = "desk"\nb = "big"\nmbps = 8\n'
    links = _links(_scenario(tmp_path, GOOD.replace("default_mbps = 80", "") + pair))
    desks = ("pc-1", "pc-2", "pc-3")
    assert set(links) == {(a, "big") for a in desks} | {("big", b) for b in desks}


def test_spares_are_one_of_each_class_with_their_links(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path, GOOD + PAIRS)
    assert set(scenario.spares) == {"gpu", "desk", "spare"}
    gpu = scenario.spares["gpu"]
    assert (gpu.peer, gpu.is_source, gpu.budget_bytes) == (PeerId("gpu", 1), False, 2**30)
    assert gpu.unit_us == scenario.snapshot.devices[0].unit_us
    links = {(link.a, link.b): link.bytes_per_s for link in scenario.spare_links}
    names, spares = ("big", "pc-1", "pc-2", "pc-3"), ("gpu", "desk", "spare")
    assert set(links) == (
        {(a, b) for a in names for b in spares}
        | {(a, b) for a in spares for b in names}
        | {(a, b) for a in spares for b in spares}
    )
    assert links["pc-2", "gpu"] == 2_000_000
    assert links["gpu", "pc-3"] == 3_000_000
    assert links["gpu", "desk"] == 3_000_000
    assert links["desk", "desk"] == 4_000_000
    assert links["spare", "spare"] == 10_000_000


def test_a_class_without_memory_is_no_spare(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path, GOOD.replace("memory_gib = 1\n", ""))
    assert set(scenario.spares) == {"desk", "spare"}
    assert not any("gpu" in (link.a, link.b) for link in scenario.spare_links)


TWO_MODELS = """
sources = ["pc"]

[[device]]
name = "pc"
class = "desk"

[class.desk]
memory_gib = 100

[class.desk.times.llama2-7b]
decode_ms = [0.5, {blocks}, 3]
prefill_ms = [5, {blocks}, 3]

[class.desk.times.llama2-70b]
decode_ms = 40

[class.desk.times.no-shipped-spec]
decode_ms = 1
"""


def test_times_are_scaled_by_parameters_from_the_nearest_model(tmp_path: Path) -> None:
    text = TWO_MODELS.replace("{blocks}", ", ".join(["4", "6"] * 16))  # 5 on average
    known, model = _spec("llama2-7b"), _spec("llama2-13b")
    scenario = _scenario(tmp_path, text, model)
    block = round(5000 * model.block_params[0] / known.block_params[0])
    head = round(3000 * model.head_params / known.head_params)
    (desk,) = scenario.snapshot.devices
    assert desk.unit_us == (round(500 * 5120 / 4096), *(block,) * 40, head)
    assert desk.prefill == (RowTimes(128, (round(5000 * 5120 / 4096), *(block,) * 40, head)),)
    assert scenario.notes == (
        "llama2-13b has no times on class desk: scaled by parameters from llama2-7b",
    )
    assert scenario.snapshot.model == model


def test_a_model_of_a_file_is_scaled_block_by_block(tmp_path: Path) -> None:
    text = TWO_MODELS.replace("{blocks}", ", ".join(["5"] * 32))
    (desk,) = _scenario(tmp_path, text, MODEL).snapshot.devices
    # Next to nothing: what takes time at all takes 1 us.
    assert desk.unit_us == (1, 1, 1, 1)


def test_own_times_are_not_scaled(tmp_path: Path) -> None:
    text = TWO_MODELS.replace("{blocks}", ", ".join(["5"] * 32))
    scenario = _scenario(tmp_path, text, _spec("llama2-70b"))
    assert scenario.notes == ()
    assert scenario.snapshot.devices[0].unit_us[1:81] == (40000,) * 80


NO_TOML = {
    "[[device]": "Expected ']]' at the end of an array declaration",
    GOOD[: GOOD.index("0.5")]: "Invalid value (at end of document)",
    "a = 1\na = 2": "Cannot overwrite a value",
    f"a = {'[' * 5000}": "nested too deeply",
    f"a = {'9' * 5000}": "Exceeds the limit",
}


@pytest.mark.parametrize(("text", "said"), NO_TOML.items(), ids=range(len(NO_TOML)))
def test_what_is_no_toml(tmp_path: Path, text: str, said: str) -> None:
    file = _file(tmp_path, text)
    with pytest.raises(TopologyError) as raised:
        read_topology(file)
    assert str(raised.value).startswith(f"{file}: is not TOML: {said}")
    assert "\n" not in str(raised.value)


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"line 2, column 5\)$"):
        read_topology(_file(tmp_path, "a = 1\nb = ?\n"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"none\.toml: cannot be read: No such file"):
        read_topology(tmp_path / "none.toml")
    with pytest.raises(TopologyError, match=r": cannot be read: Is a directory$"):
        read_topology(tmp_path)
    with pytest.raises(TopologyError, match=r"is not UTF-8 \(byte 2\), expected TOML$"):
        read_topology(_file(tmp_path, b"# \xff"))
    with pytest.raises(TopologyError, match="has more than 4194304 bytes"):
        read_topology(_file(tmp_path, b"#" * (2**22 + 1)))


WRONG = {
    # top level
    ('sources = ["pc-2"]', ""): "sources is missing",
    ('["pc-2"]', "[]"): "sources: expected at least one device's name",
    ('["pc-2"]', '"pc-2"'): "sources: expected a list, got text",
    ('["pc-2"]', '["pc-1", 3]'): "sources[1]: expected text, got a whole number",
    ('["pc-2"]', '["pc"]'): 'sources[0]: no device "pc" in this file',
    ('["pc-2"]', '["pc-2", "pc-2"]'): 'sources[1]: "pc-2" is named twice',
    ('["pc-2"]', '["p c"]'): "sources[0]: expected letters, digits, '.', '_' or '-'",
    ("sources", "colour = 1\nsources"): (
        'unknown key "colour"; known: sources, name, first_layer, kv, device, class, link'
    ),
    ("sources", "first_layer = 'head'\nsources"): (
        'first_layer: expected "embedding" or "block", got "head"'
    ),
    ("sources", "kv = 1\nsources"): "kv: expected true or false, got a whole number",
    ("[link]", "[link-of]"): (
        'unknown key "link-of"; known: sources, name, first_layer, kv, device, class, link'
    ),
    # devices
    ('name = "pc"', ""): "device[1]: name is missing",
    ('name = "pc"', 'name = "big"\n[[device]]\nname="big"'): "device[1]: class is missing",
    ('class = "desk"', 'class = "dsk"'): (
        'device[1].class: no class "dsk"; classes: gpu, desk, spare'
    ),
    ("count = 3", "cuont = 3"): (
        'device[1]: unknown key "cuont"; known: name, class, role, count, memory_gib'
    ),
    ("count = 3", "count = 0"): "device[1].count: expected a whole number >= 1",
    ("count = 3", "count = 513"): "device[1].count: expected a whole number <= 512",
    ("count = 3", "count = 512"): "device: expected 1 to 512 devices, got 513",
    ("count = 3", "count = 1.5"): "device[1].count: expected a whole number, got a number",
    ('name = "pc"', 'name = "-pc"'): "device[1].name: expected letters, digits, '.', '_' or '-'",
    ('name = "pc"', f'name = "{"p" * 64}"'): "device[1].name: expected text of length <= 63",
    ('name = "pc"', f'name = "{"p" * 62}"'): "device[1].name: expected text of length <= 63",
    ('name = "big"', 'name = "pc-1"'): 'device[1].name: "pc-1" is the name of an earlier device',
    ('name = "big"', 'name = "gpu"'): 'device[0].name: "gpu" names both a class and a device',
    ('"cloud"', '"fog"'): 'device[0].role: expected "cloud" or no role, got "fog"',
    ("count = 3", 'count = 3\nrole = "cloud"'): (
        "device[1].role: expected at most one device of role cloud"
    ),
    ("memory_gib = 3", "memory_gib = 0"): "device[0].memory_gib: expected a number > 0",
    ("memory_gib = 3", "memory_gib = -2"): "device[0].memory_gib: expected a number > 0",
    ("memory_gib = 3", "memory_gib = nan"): "device[0].memory_gib: expected a number > 0",
    ("memory_gib = 3", "memory_gib = inf"): "device[0].memory_gib: expected a number <= 262144",
    ("memory_gib = 3", "memory_gib = 1e9"): "device[0].memory_gib: expected a number <= 262144",
    ("memory_gib = 3", f"memory_gib = 1{'0' * 400}"): "device[0].memory_gib: number out of range",
    ("memory_gib = 3", 'memory_gib = "3"'): "device[0].memory_gib: expected a number, got text",
    ("memory_gib = 3", "memory_gib = true"): (
        "device[0].memory_gib: expected a number, got true or false"
    ),
    ("memory_gib = 0.5", ""): "device[1].memory_gib: expected, as class desk has none",
    # classes
    ("[class.spare]", '[class."a b"]'): "class.\"a b\": expected letters, digits, '.', '_' or '-'",
    ("memory_gib = 0.5", "memroy = 1"): (
        'class.desk: unknown key "memroy"; known: memory_gib, cores, times'
    ),
    ("memory_gib = 0.5", "memory_gib = -1"): "class.desk.memory_gib: expected a number > 0",
    ("prefill_ms = 20", "prefil_ms = 20"): (
        'class.desk.times.toy: unknown key "prefil_ms"; known: decode_ms, prefill_ms'
    ),
    ("decode_ms = { 4 = 5, 1 = 4 }", ""): "class.desk.times.toy: decode_ms is missing",
    ("{ 4 = 5, 1 = 4 }", "{ 4 = 5 }"): (
        'class.desk.times.toy.decode_ms: expected a key "1" for one row'
    ),
    ("{ 4 = 5, 1 = 4 }", "{ 01 = 5, 1 = 4 }"): (
        'class.desk.times.toy.decode_ms.01: expected a key from "1" to "65536"'
    ),
    ("{ 4 = 5, 1 = 4 }", "{ 70000 = 5, 1 = 4 }"): (
        'class.desk.times.toy.decode_ms.70000: expected a key from "1" to "65536"'
    ),
    ("{ 4 = 5, 1 = 4 }", "{ 4 = -5, 1 = 4 }"): (
        "class.desk.times.toy.decode_ms.4: expected a number >= 0"
    ),
    ("{ 4 = 5, 1 = 4 }", '"4"'): ("class.desk.times.toy.decode_ms: expected a number, got text"),
    ("prefill_ms = 20", "prefill_ms = {}"): (
        "class.desk.times.toy.prefill_ms: expected at least one key"
    ),
    ("prefill_ms = 20", "prefill_ms = nan"): (
        "class.desk.times.toy.prefill_ms: expected a number >= 0"
    ),
    ("prefill_ms = 20", "prefill_ms = 1e8"): (
        "class.desk.times.toy.prefill_ms: expected a number <= 10000000"
    ),
    ("prefill_ms = 20", "prefill_ms = [1, 2]"): (
        "class.desk.times.toy.prefill_ms: expected a number, or one for each unit, got a list of 2"
    ),
    ("prefill_ms = 20", "prefill_ms = [1, 2, -3]"): (
        "class.desk.times.toy.prefill_ms[2]: expected a number >= 0"
    ),
    ("[class.spare.times.toy]\ndecode_ms = 1", "times = 5"): (
        "class.spare.times: expected a table, got a whole number"
    ),
    ("memory_gib = 0.5", "memory_gib = 0.5\ncores = 1e-9"): (
        "class.desk.cores: expected a number >= 0.01"
    ),
    # links
    ("default_mbps = 80", "default_mbps = 0"): "link.default_mbps: expected a number > 0",
    ("default_mbps = 80", "default_mbps = 1e8"): "link.default_mbps: expected a number <= 10000000",
    ("per_message_ms = 0.5", "per_message_ms = -1"): "link.per_message_ms: expected a number >= 0",
    ("delay_ms = 1", "delay_ms = 1e8"): "link.delay_ms: expected a number <= 10000000",
    ("delay_ms = 1", "delay = 1"): (
        'link: unknown key "delay"; known: default_mbps, per_message_ms, delay_ms, '
        "row_overhead_bytes, token_bytes, pair"
    ),
    ("delay_ms = 1", "token_bytes = -4"): "link.token_bytes: expected a whole number >= 0",
    ("delay_ms = 1", "pair = 3"): "link.pair: expected a list, got a whole number",
    ("delay_ms = 1", "pair = [3]"): "link.pair[0]: expected a table, got a whole number",
    ("delay_ms = 1", 'pair = [{ a = "pc-1", b = "big" }]'): "link.pair[0]: mbps is missing",
    ("delay_ms = 1", 'pair = [{ a = "pc-1", b = "bgi", mbps = 1 }]'): (
        'link.pair[0].b: "bgi" is no device and no class of this file'
    ),
    ("delay_ms = 1", 'pair = [{ a = "pc", b = "big", mbps = 1 }]'): (
        'link.pair[0].a: "pc" is no device and no class of this file'
    ),
    ("delay_ms = 1", 'pair = [{ a = "big", b = "big", mbps = 1 }]'): (
        'link.pair[0]: expected two devices, got "big" twice'
    ),
    ("delay_ms = 1", 'pair = [{ a = "pc-1", b = "big", mbps = 0 }]'): (
        "link.pair[0].mbps: expected a number > 0"
    ),
    ("delay_ms = 1", 'pair = [{ a = "pc-1", b = "big", mbps = 1, speed = 1 }]'): (
        'link.pair[0]: unknown key "speed"; known: a, b, mbps, per_message_ms, delay_ms'
    ),
}


@pytest.mark.parametrize(("change", "said"), WRONG.items())
def test_what_cannot_be_is_said_with_its_key(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    assert change[0] in GOOD
    file = _file(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(TopologyError) as raised:
        read_topology(file)
    assert str(raised.value) == f"{file}: {said}"


def test_a_file_without_devices(tmp_path: Path) -> None:
    file = _file(tmp_path, 'sources = ["pc"]')
    with pytest.raises(TopologyError) as raised:
        read_topology(file)
    assert str(raised.value) == f"{file}: device: expected 1 to 512 devices, got 0"


def test_a_key_on_several_lines_is_shown_on_one(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as raised:
        read_topology(_file(tmp_path, f'"a\\nb{"c" * 100}" = 1\n'))
    assert f': unknown key "a\\nb{"c" * 57}..."; known:' in str(raised.value)


@pytest.mark.parametrize("end", range(0, len(GOOD), 7))
def test_a_file_that_was_cut_is_read_or_refused(tmp_path: Path, end: int) -> None:
    said = ""
    try:
        _scenario(tmp_path, GOOD[:end])
    except TopologyError as error:
        said = str(error)
    assert said == "" or said.startswith(f"{tmp_path / 'lab.toml'}: ")
    assert "\n" not in said


def test_a_list_must_fit_the_model(tmp_path: Path) -> None:
    text = GOOD.replace("[0.0, 0.0001, 2, 3.5]", "[0.0, 0.0001, 2]")
    with pytest.raises(TopologyError) as raised:
        _scenario(tmp_path, text)
    assert str(raised.value) == (
        f"{tmp_path / 'lab.toml'}: class.gpu.times.toy.decode_ms: "
        "expected 4 numbers for the units of toy, got 3 (for 1 rows)"
    )


def test_a_class_without_times_for_any_known_model(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as raised:
        _scenario(tmp_path, GOOD, _spec("llama2-7b"))
    assert str(raised.value) == (
        f"{tmp_path / 'lab.toml'}: class.gpu.times: no times for llama2-7b, nor for a model to "
        "scale them from (llama2-13b, llama2-70b, smollm2-135m-instruct)"
    )


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("model", shipped())
def test_shipped_topologies_hold_every_shipped_model(file: Path, model: str) -> None:
    topology = read_topology(file)
    scenario = topology.scenario(_spec(model), dtype="fp32", context=128, batch=1)
    assert scenario.order[: len(topology.sources)] == topology.sources
    assert len(scenario.order) == len(scenario.snapshot.devices)
    assert set(scenario.spares) == set(topology.classes)


def test_the_topologies_are_there() -> None:
    assert {file.stem for file in SHIPPED} >= {
        "home-lab",
        "office-lan",
        "paper-testbed",
        "three-peers",
    }


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (SHIPPED[0].parent / "README.md").read_text("utf-8")
    example = readme.split("```toml\n")[1].split("```")[0]
    scenario = _scenario(tmp_path, example, _spec("llama2-7b"))
    assert scenario.order == ("laptop", "pc-1", "pc-2")
    assert scenario.notes == ()


PAPER_PLANS = {
    "edge-solo": ([("agx-1", 1, 34)], 140.3),
    "exact": ([("agx-2", 1, 5), ("rtx3090", 5, 34)], 52.5),
    "Algorithm 1": ([("agx-2", 1, 2), ("rtx3090", 2, 31), ("agx-2", 31, 34)], 56.4),
    "cloud-edge-even": ([("agx-1", 1, 17), ("rtx3090", 17, 34)], 218.1),
}


@pytest.mark.parametrize("name", PAPER_PLANS)
def test_plans_on_the_papers_testbed_cost_what_they_are_known_to(name: str) -> None:
    runs, ms = PAPER_PLANS[name]
    (file,) = [file for file in SHIPPED if file.stem == "paper-testbed"]
    scenario = read_topology(file).scenario(_spec("llama2-7b"), dtype="fp32", context=128, batch=1)
    stages = tuple(Stage(PeerId(peer, 1), UnitRange(a, b)) for peer, a, b in runs)
    layout = Layout((PeerId("agx-1", 1),), 1, stages, 34)
    assert round(latency_us(scenario.snapshot, layout) / 1000, 1) == ms
