"""benchmarks.compare at toy size, with a peer script that writes a known result."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_cases
from processes import devices

from benchmarks import checkpoint, compare, machine, ours, table, work
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.runtime.files import write_jsonl

PEER = """#!{python}
import json, sys
job = json.load(open(sys.argv[2]))
result = {{"seconds": [1.0, 3.0, 2.0], "count": job["count"], "memory_gb": 0.5}}
json.dump(result, open(sys.argv[3], "w"))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    tiny_cases.one_device(monkeypatch)


@pytest.fixture(scope="module")
def model(cache) -> Path:
    return checkpoint.language_model("", cache, "tiny")


@pytest.fixture(scope="module")
def items(model, cache) -> dict[str, work.Work]:
    """All work at toy size, on a file of edits and one of prompts."""
    edits, prompts = cache / "edits.jsonl", cache / "prompts.jsonl"
    text = "The city has a bridge over the river, and a tower of stone"
    rows = [
        {"instruction": f"Describe it ({n}).", "original": f"{text}.", "edited": f"{text}, {n}."}
        for n in range(20)
    ]
    write_jsonl(edits, rows)
    write_jsonl(prompts, [{"instruction": row["instruction"]} for row in rows])
    sizes = work.TINY._replace(steps=1)
    made = work.make(work.GROUPS, model, cache, str(edits), str(prompts), sizes)
    return {item.name: item for item in made}


@pytest.fixture
def peers(tmp_path) -> Path:
    python = tmp_path / "peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PEER.format(python=sys.executable))
    python.chmod(0o755)
    return tmp_path / "peers"


def test_both_sides_read_the_same_tokens(items, model):
    names = "rm rm_edits sft decode_1 decode_2 ppo ppo_lora ppo_real"
    assert [*items] == names.split()
    sizes = work.TINY
    assert {len(ids) for pair in items["rm"].job["rows"] for ids in pair} == {sizes.columns}
    for name in ("rm", "rm_edits"):
        job = items[name].job
        assert len(job["rows"]) == len(job["records"])
        rows = [ours.parse(fields) for fields in job["records"]]
        options = {"overlong": "truncate", **job["data"]}
        pairs = ours.encode_by_kind(rows, name, hf_load.load_tokenizer(model), options)
        (encoded,) = pairs.values()
        assert [pair.row for pair in encoded] == list(range(len(rows)))
        assert [[[*p.tokens_i], [*p.tokens_j]] for p in encoded] == job["rows"]
    flops = [items["ppo_real"].flops({"lengths": [n, 2]}) for n in (1, 2)]
    assert flops[0] < flops[1]
    job = json.loads(json.dumps(items["rm_edits"].job))  # as its process reads it
    result = json.loads(json.dumps(ours.main(items["rm_edits"].script, job)))
    assert (len(result["seconds"]), result["count"]) == (1, sizes.edits)
    assert min(result["memory_gb"], items["rm_edits"].flops(result)) > 0


def test_the_ratio_is_the_median_of_the_rounds(items, monkeypatch):
    """Of the ratios 4/1, 4/2 and 4/4; the spread of one side is visible in the ratios."""
    seconds = iter([1.0, 4.0, 2.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(machine, "measured_flops", lambda: 1e11)
    result = {"count": 8, "memory_gb": 1.0}
    run = lambda *_: result | {"seconds": [next(seconds)]}  # noqa: E731
    monkeypatch.setattr(compare, "run", run)
    options = compare.parse_arguments(["--json=x", "--sides=ours", "--rounds=3"])
    options.sides = ["ours", "peer"]
    row = compare.compare(items["sft"], options)
    assert (row["ratio"], row["spread"], row["peer"]) == (2.0, [1.0, 4.0], 2.0)


def test_one_round_has_no_spread_and_of_decoding_the_prefill_is_compared(items, monkeypatch):
    """Ours takes a quarter of the peer's seconds in decoding, and half in the prefill."""
    sides = {
        "ours": {"seconds": [1.0], "prefill_seconds": 0.5, "compile_seconds": 7.0},
        "peer": {"seconds": [4.0], "prefill_seconds": 1.0},
    }
    monkeypatch.setattr(machine, "measured_flops", lambda: 1e11)
    run = lambda item, side, _: sides[side] | {"count": 8, "memory_gb": 1.0}  # noqa: E731
    monkeypatch.setattr(compare, "run", run)
    options = compare.parse_arguments(["--json=x", "--sides=ours", "--rounds=1"])
    options.sides = ["ours", "peer"]
    row = compare.compare(items["decode_1"], options)
    assert (row["ratio"], row["spread"]) == (4.0, None)
    assert row["prefill"] == {"ours": 0.5, "peer": 1.0, "ratio": 2.0, "spread": None}
    said = table.line("decode_1", row)
    assert "ratio 4.00 (one round), prefill 2.00;" in said
    assert said.endswith("; ours compiles 7 s")


def test_a_failure_is_recorded_and_the_others_go_on(model, peers, tmp_path, monkeypatch, capsys):
    python = peers / "bin" / "python"
    python.write_text(
        python.read_text() + "\nif 'decode' in sys.argv[1]: sys.exit('no such thing')\n"
    )
    monkeypatch.setattr(machine, "measured_flops", lambda: 1e11)
    file = tmp_path / "result.json"
    flags = ["--only=sft,decode", "--size=tiny", "--sides=peer", "--rounds=1"]
    files = [f"--json={file}", f"--model={model}", f"--peers={peers}"]
    assert not compare.main(compare.parse_arguments([*flags, *files]))
    results = json.loads(file.read_text())
    assert "no such thing" in results["decode_1"]["error"]
    assert results["sft"]["peer"] == 16
    assert "ratio" not in results["sft"]
    assert "decode_2: peer failed (1)" in capsys.readouterr().err


def test_a_side_that_takes_too_long_is_ended(peers):
    python = peers / "bin" / "python"
    python.write_text(f"#!{sys.executable}\nimport time; time.sleep(60)")
    options = compare.parse_arguments(["--json=x", f"--peers={peers}", "--limit=0.5"])
    item = work.Work("x", "x", "sft", "torch", "tokens", {}, lambda _: 1.0)
    with pytest.raises(RuntimeError, match=r"peer failed \(more than 0.5 s\)"):
        compare.run(item, "peer", options)


COMMAND = """
import sys
from benchmarks import fresh
worker = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(60)"
fresh.exit_with_status(lambda: fresh.run([sys.executable, "-c", worker, sys.argv[1]], {}, 60))
"""


def test_a_terminated_command_ends_its_worker(tmp_path):
    file = tmp_path / "pid"
    root = Path(compare.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(file)], cwd=root)
    for _ in range(600):
        if file.exists() and (pid := file.read_text().strip()):
            break
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=rm,sit"], "only=sit: is not one of rm,"),
        (["--json=x", "--peers=nowhere"], "bash benchmarks/peers/setup.sh"),
    ],
)
def test_bad_options_are_one_sentence(flags, message):
    with pytest.raises(compare.InputError, match=message):
        compare.parse_arguments(flags)


@pytest.mark.parity
def test_ours_and_torch_in_turn(model, tmp_path, monkeypatch):
    """Both sides run in new processes; earlier results in the file stay."""
    peers, file, markdown = tmp_path / "bin", tmp_path / "result.json", tmp_path / "table.md"
    peers.mkdir()
    (peers / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (peers / "python").chmod(0o755)
    file.write_text(json.dumps({"decode_1": {"ratio": 2.0}}))
    monkeypatch.setenv("XLA_FLAGS", devices(1))  # one device there too
    flags = ["--only=sft", "--size=tiny", "--rounds=1", "--steps=1", f"--model={model}"]
    files = [f"--json={file}", f"--markdown={markdown}", f"--peers={tmp_path}"]
    assert compare.main(compare.parse_arguments([*flags, *files]))
    results = json.loads(file.read_text())
    assert results["decode_1"] == {"ratio": 2.0}
    row = results["sft"]
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert row["spread"] is None
    assert row["compile_seconds"] > 0
    assert min(row["memory_gb"][side] for side in ("ours", "peer")) > 0.2
    assert row["products"] > 1e9
    assert f"**{row['ratio']:.2f}**" in markdown.read_text()
