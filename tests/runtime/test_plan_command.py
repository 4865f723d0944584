"""``edgeshard plan`` and ``simulate``: the paper's table, the JSON, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgeshard_p2p.cli import main
from edgeshard_p2p.cli.plan_words import SavedPlan, moved_bytes

TOPOLOGIES = Path(__file__).parents[2] / "topology"
PAPER = TOPOLOGIES / "paper-testbed.toml"
KEYS = {
    "plan_id", "snapshot_id", "algorithm", "objective", "feasible", "reason", "missing_bytes",
    "revisits", "predicted", "stages", "excluded",
}  # fmt: skip


def edgeshard(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def paper(*arguments: object, model: str = "llama2-7b") -> Result:
    return edgeshard("plan", "--topology", PAPER, "--model", model, *arguments)


def plan(*arguments: object, model: str = "llama2-7b") -> Any:
    return json.loads(paper("--json", *arguments, model=model).stdout)


SWEEP = {
    "edge-solo": [140.3, 140.3, 140.3, 140.3, 140.3],
    "paper": [56.4, 56.4, 56.4, 54.0, 49.3],
    "exact": [52.5, 52.5, 52.5, 50.4, 47.8],
    "cloud-edge-opt": [140.3, 71.4, 58.2, 50.4, 47.8],
    "cloud-edge-even": [218.1, 113.2, 100.1, 92.2, 89.6],
}
"""ms per token at 1, 5, 10, 25 and 50 Mbps between source and cloud."""


@pytest.mark.parametrize("algorithm", SWEEP)
def test_the_table_for_7b_comes_out_of_the_topology_file(algorithm: str) -> None:
    for mbps, ms in zip([1, 5, 10, 25, 50], SWEEP[algorithm], strict=True):
        change = f"bandwidth:agx-1-rtx3090={mbps}"
        told = plan("--algorithm", algorithm, "--what-if", change)["after"]
        assert told["predicted"]["ms_per_token"] == pytest.approx(ms, rel=0.01), mbps


OWN_MODEL = {
    (): [52.5, 52.5, 52.5, 50.4, 47.8, 183.5, 1422.5],
    ("--first-layer", "block"): [52.5, 52.5, 52.5, 50.4, 47.8, 183.5, 1422.5],
    ("--kv",): [59.6, 59.6, 59.6, 57.5, 54.8, 194.3, 1422.5],
    ("--own-framing",): [53.5, 52.7, 52.6, 50.5, 47.8, 184.5, 1423.7],
    ("--first-layer", "block", "--kv", "--own-framing"):
        [60.6, 59.8, 59.7, 57.5, 54.9, 195.4, 1423.7],
}  # fmt: skip
"""ms per token of ``exact``: 7B as above, then 13B and 70B at 1 Mbps."""


@pytest.mark.parametrize("options", OWN_MODEL, ids=" ".join)
def test_the_table_under_our_own_cost_model(options: tuple[str, ...]) -> None:
    rows = [("llama2-7b", mbps) for mbps in (1, 5, 10, 25, 50)]
    rows += [("llama2-13b", 1), ("llama2-70b", 1)]
    for (model, mbps), ms in zip(rows, OWN_MODEL[options], strict=True):
        change = f"bandwidth:agx-1-rtx3090={mbps}"
        told = plan(*options, "--what-if", change, model=model)["after"]
        assert round(told["predicted"]["ms_per_token"], 1) == ms, (model, mbps)


def test_options_stand_above_what_the_file_says() -> None:
    sources, *stages = plan("--first-layer", "block", "--kv")["stages"]
    assert sources["end"] == 2
    assert all(stage["kv_bytes"] for stage in (sources, *stages))
    told = small("--first-layer", "embedding", "--no-kv")["stages"]
    assert [stage["end"] for stage in told[:3]] == [1, 1, 1]
    assert not any(stage["kv_bytes"] for stage in told)


def test_simulate_takes_the_same_options() -> None:
    common = ["simulate", PAPER, "--model", "llama2-7b", "--requests", 1, "--json"]
    ours = [*common, "--first-layer", "block", "--kv", "--own-framing"]
    bare, own = (json.loads(edgeshard(*command).stdout) for command in (common, ours))
    assert round(bare["ms_per_token"]["p50"], 1) == SWEEP["exact"][0]
    assert round(own["ms_per_token"]["p50"], 1) == 60.6


@pytest.mark.parametrize(
    ("model", "feasible"),
    [
        ("llama2-13b", {"exact", "paper", "cloud-edge-opt", "even"}),
        ("llama2-70b", {"exact", "paper"}),
    ],
)
def test_the_larger_models_fit_where_they_can(model: str, feasible: set[str]) -> None:
    told = plan("--compare", model=model)
    assert {name for name, one in told.items() if one["feasible"]} == feasible


def test_the_relay_round_the_slow_link() -> None:
    told = plan()
    assert told.keys() >= KEYS
    cuts = [(stage["start"], stage["end"]) for stage in told["stages"]]
    assert cuts == [(0, 1), (1, 5), (5, 34)]
    assert [stage["peer"] for stage in told["stages"]][::2] == ["agx-1", "rtx3090"]
    assert told["predicted"]["bound"] == told["predicted"]["ms_per_token"]
    walked = sum(stage["compute_ms"] + stage["link_ms"] for stage in told["stages"])
    assert walked == pytest.approx(told["predicted"]["ms_per_token"])


def test_a_plan_that_comes_back_to_a_device_says_so() -> None:
    assert plan("--algorithm", "paper")["revisits"]
    assert not plan()["revisits"]
    assert plan("--algorithm", "paper")["predicted"]["bound"] is None


def test_an_infeasible_plan_is_exit_code_1_with_what_is_missing() -> None:
    result = paper("--json", "--algorithm", "edge-solo", model="llama2-13b")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert not told["feasible"]
    assert told["missing_bytes"] > 19 * 2**30
    assert told["reason"] == "agx-1 lacks 19.5 GiB"


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_with_a_private_head_the_stages_end_on_the_source(objective: str) -> None:
    told = plan("--private-head", "--objective", objective)
    assert told["feasible"]
    assert [told["stages"][0]["peer"], told["stages"][-1]["peer"]] == ["agx-1", "agx-1"]
    assert [told["stages"][0]["start"], told["stages"][-1]["end"]] == [0, 34]
    ends, starts = ([stage[key] for stage in told["stages"]] for key in ("end", "start"))
    assert ends[:-1] == starts[1:]
    without = plan("--objective", objective)
    assert without["predicted"]["ms_per_token"] <= told["predicted"]["ms_per_token"]
    assert without["plan_id"] != told["plan_id"]


def test_who_knows_no_private_head_says_so() -> None:
    assert "private head" in plan("--private-head", "--algorithm", "paper")["reason"]
    assert plan("--private-head", "--algorithm", "edge-solo")["reason"] == ""


def test_who_is_left_out_and_why(tmp_path: Path) -> None:
    told = edgeshard(
        "plan", "--topology", TOPOLOGIES / "home-lab.toml", "--model", "llama2-7b", "--json"
    )
    reasons = {one["peer"]: one["reason"] for one in json.loads(told.stdout)["excluded"]}
    assert reasons
    assert {reason.split(":")[0] for reason in reasons.values()} <= {"memory", "link", "time"}


def test_without_a_cloud_its_algorithms_are_wrong_usage() -> None:
    file = TOPOLOGIES / "three-peers.toml"
    arguments = ["plan", "--topology", file, "--model", "smollm2-135m-instruct"]
    result = edgeshard(*arguments, "--algorithm", "cloud-edge-opt")
    assert result.exit_code == 2
    assert 'no device has role = "cloud"' in result.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("drop=nobody", "no device 'nobody'"),
        ("add=nothing", "no 'nothing' to add; there are agx-orin-32gb"),
        ("bandwidth:agx-1-agx-1=5", "is not A-B of two devices"),
        ("bandwidth:agx-1-rtx3090=-5", "expected a number above 0"),
        ("memory:agx-1=nan", "expected a number above 0"),
        ("dtype=int3", "no dtype 'int3'"),
        ("sell=agx-1", "is no change"),
    ],
)
def test_changes_that_cannot_be_are_one_line(change: str, complaint: str) -> None:
    result = paper("--what-if", change)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_another_dtype_than_fp32_is_noted_however_it_is_asked_for() -> None:
    note = "int4 changes bytes; times stay those that were measured or given"
    assert plan()["notes"] == []
    assert plan("--dtype", "int4")["notes"] == [note]
    assert plan("--what-if", "dtype=int4")["after"]["notes"] == [note]
    assert plan("--dtype", "bf16", "--what-if", "dtype=int4")["after"]["notes"] == [note]
    assert plan("--dtype", "bf16", "--what-if", "dtype=fp32")["after"]["notes"] == []
    assert note in paper("--dtype", "int4").stdout


@pytest.mark.parametrize("change", ["add=rtx-3090-24gb", "memory:rtx3090=24", "dtype=int4"])
def test_more_can_only_help(change: str) -> None:
    told = plan("--what-if", change)
    assert told["after"]["predicted"]["ms_per_token"] < told["before"]["predicted"]["ms_per_token"]


def test_adding_twice_adds_two() -> None:
    changes = ["--what-if", "add=orin-nx-16gb"] * 2
    told = plan("--what-if", "drop=agx-1", *changes, "--algorithm", "even")
    assert not told["after"]["feasible"]  # The source is gone, whatever is added.
    told = plan(*changes, "--algorithm", "even")["after"]
    added = {stage["peer"] for stage in told["stages"]} & {
        "orin-nx-16gb.new-1",
        "orin-nx-16gb.new-2",
    }
    assert len(added) == 2


def test_names_like_those_we_make_are_no_trouble(tmp_path: Path) -> None:
    file = tmp_path / "twins.toml"
    file.write_text(
        'sources = ["a"]\n'
        '[[device]]\nname = "a"\nclass = "c"\n'
        '[[device]]\nname = "a.twin-1"\nclass = "c"\n'
        '[[device]]\nname = "c.new-1"\nclass = "c"\n'
        "[class.c]\nmemory_gib = 20\n"
        '[class.c.times."llama2-7b"]\ndecode_ms = 5\n'
        "[link]\ndefault_mbps = 100\n"
    )
    for option in (["--explain"], ["--what-if", "add=c"]):
        result = edgeshard("plan", "--topology", file, "--model", "llama2-7b", *option)
        assert result.exit_code == 0, result.output


def test_losses_and_explanations_agree_with_what_if() -> None:
    without = plan("--what-if", "drop=rtx3090")["after"]["predicted"]["ms_per_token"]
    assert plan("--survives")["losses"]["rtx3090"]["predicted"]["ms_per_token"] == without
    devices = {one["peer"]: one for one in plan("--explain")["devices"]}
    assert len(devices) == 15
    assert devices["rtx3090"]["without"]["ms_per_token"] == without
    assert devices["rtx3090"]["bound_by"] == "memory"
    assert not devices["nx-1"]["used"]


def test_losing_the_only_source_leaves_no_plan() -> None:
    assert plan("--survives")["losses"]["agx-1"]["reason"].startswith("no source")


def test_the_bytes_between_two_saved_plans(tmp_path: Path) -> None:
    saved = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, algorithm in zip(saved, ["edge-solo", "exact"], strict=True):
        file.write_text(json.dumps(plan("--algorithm", algorithm)))
    told = json.loads(edgeshard("plan", "--diff", *saved, "--json").stdout)
    relay = json.loads(saved[1].read_text())["stages"][1:]
    assert told["moved_bytes"] == {one["peer"]: one["weight_bytes"] for one in relay}
    back = json.loads(edgeshard("plan", "--diff", *reversed(saved), "--json").stdout)
    assert back["total_bytes"] == told["total_bytes"]


def small(*arguments: object) -> Any:
    """A plan of a model whose head is tied."""
    command = ["plan", "--topology", TOPOLOGIES / "three-peers.toml", "--json"]
    return json.loads(edgeshard(*command, "--model", "smollm2-135m-instruct", *arguments).stdout)


def saved(plan: Any) -> SavedPlan:
    return msgspec.convert(plan, SavedPlan)


def test_a_matrix_that_embedding_and_head_share_is_loaded_once() -> None:
    # even: 0-10 on dev-a, 11-21 on dev-b, 22-31 on dev-c.  exact: 0-1 on all three, 2-11 on dev-a,
    # 12-31 on dev-b.
    even, exact = small("--algorithm", "even"), small()
    block, matrix, norm = 4 * 3_540_096, 4 * 28_311_552, 4 * 576
    assert moved_bytes(saved(even), saved(exact)) == {
        "dev-a": block,
        "dev-b": matrix + 10 * block + norm,
        "dev-c": block,  # the embedding's matrix is there with the head
    }
    assert moved_bytes(saved(exact), saved(even)) == {"dev-b": block, "dev-c": 9 * block + norm}
    assert moved_bytes(saved(exact), saved(exact)) == {}


def test_nothing_of_another_dtype_or_model_is_kept() -> None:
    exact, loaded = small(), {}
    for stage in exact["stages"]:
        loaded[stage["peer"]] = loaded.get(stage["peer"], 0) + stage["weight_bytes"]
    assert moved_bytes(saved(small("--dtype", "bf16")), saved(exact)) == loaded
    assert moved_bytes(saved(plan()), saved(exact)) == loaded


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    result = edgeshard("plan", "--diff", tmp_path / "a.json", tmp_path / "a.json")
    assert result.exit_code == 2
    assert "no plan saved with" in result.stderr


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "{}", '{"plan_id": null}',
     json.dumps({"plan_id": "a", "model": "m", "dtype": "fp32", "tied_bytes": 0,
                 "unit_weight_bytes": [1], "stages": [{"peer": "a", "start": 0, "end": 9}]})],
    ids=range(6),
)  # fmt: skip
def test_nonsense_for_a_plan_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    result = edgeshard("plan", "--diff", tmp_path / "a.json", tmp_path / "a.json")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_prompt_longer_than_the_context_is_wrong_usage() -> None:
    result = paper("--prompt", 4000, "--generate", 1000)
    assert result.exit_code == 2
    assert "context of 4096" in result.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--micro-batch", 2), "--micro-batch is for --objective throughput"),
        (
            ("--objective", "throughput", "--batch", 8, "--micro-batch", 9),
            "9 rows to a pass cannot be: batch is 8",
        ),
    ],
)
@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_impossible_micro_batches_are_wrong_usage(
    command: str, options: tuple[object, ...], why: str
) -> None:
    where = ("--topology", PAPER) if command == "plan" else (PAPER,)
    result = edgeshard(command, *where, "--model", "llama2-7b", *options)
    assert (result.exit_code, result.stderr) == (2, f"edgeshard: {why}\n")


def test_losses_of_what_has_no_plan_are_one_object() -> None:
    result = paper("--survives", "--algorithm", "edge-solo", "--json", model="llama2-70b")
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["plan"]["feasible"]


def test_throughput_beats_the_latency_plan_where_there_is_enough_in_flight() -> None:
    wide = plan("--objective", "throughput", "--batch", 16)["predicted"]
    one = plan("--batch", 16)["predicted"]
    assert wide["tokens_per_s"] > one["tokens_per_s"]
    assert wide["tokens_per_s"] == pytest.approx(16e3 / wide["ms_per_token"], rel=0.001)


@pytest.mark.parametrize("schedule", ["bubbles", "no-bubbles"])
def test_simulated_and_closed_form_agree(schedule: str) -> None:
    result = edgeshard(
        "simulate", PAPER, "--model", "llama2-7b", "--objective", "throughput",
        "--schedule", schedule, "--gantt", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert abs(told["difference_percent"]) < 1


def test_simulating_what_does_not_fit_is_one_line() -> None:
    result = edgeshard("simulate", PAPER, "--model", "llama2-13b", "--algorithm", "edge-solo")
    assert result.exit_code == 1
    assert result.stderr == "edgeshard: infeasible: agx-1 lacks 19.5 GiB\n"


def test_an_unknown_model_names_those_that_ship() -> None:
    result = paper(model="llama3-1t")
    assert result.exit_code == 2
    assert "llama2-7b" in result.stderr
