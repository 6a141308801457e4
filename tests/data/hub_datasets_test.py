"""AlpacaFarm by its exact ids: of a folder of that form, and of a hub where it ships a script."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import hub_cases
import pytest

from configs import pipeline
from fgrlhf_jax.data import hub_datasets, sources
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.datasets import make_data
from fgrlhf_jax.runtime.files import write_jsonl

SIZES = {path.replace("/", ":"): len(rows) for path, rows in hub_cases.alpaca_farm().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """tatsu-lab/alpaca_farm here: Parquet files, and a card that says which are which."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    root = tmp_path / hub_cases.NAME
    card: dict[str, list] = {}
    for path, rows in hub_cases.alpaca_farm(getattr(request, "param", 1)).items():
        config, split = path.split("/")
        (root / config).mkdir(parents=True, exist_ok=True)
        (root / f"{path}.parquet").write_bytes(hub_cases.parquet(rows))
        card.setdefault(config, []).append({"split": split, "path": f"{path}.parquet"})
    configs = [{"config_name": name, "data_files": files} for name, files in card.items()]
    (root / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\nA card.\n")
    yield root
    datasets.enable_progress_bars()


def test_every_set_of_alpaca_farm_by_its_id(folder):
    for path, rows in hub_cases.alpaca_farm().items():
        read = sources.read_with_rows(f"{hub_cases.NAME}:{path.replace('/', ':')}")
        assert [row for _, row in read] == rows
    instructions = sources.read(f"{hub_cases.NAME}:alpaca_instructions:val")
    assert instructions[0] == Instruction("val 0", "", "val 0: yes.")
    preferences = sources.read(f"{hub_cases.NAME}:alpaca_human_preference")
    assert preferences[1] == Preference("human 1", "", "One.", "Two.", 2)


@pytest.mark.parametrize("folder", [40], indirect=True)
def test_the_papers_setting(folder, tmp_path):
    """The pipeline of LLaMA-7B takes every file but the edits by its id."""
    edits = [Edit(f"human {n}", "", "Two.", "Two, three.") for n in range(60)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    config = pipeline.get_config("llama_7b")
    sets = {
        "sft": "alpaca_instructions:sft",
        "preferences": "alpaca_human_preference:preference",
        "prompts": "alpaca_instructions:unlabeled",
        "test": "alpaca_farm_evaluation:eval",
    }
    config.files.update({name: f"{hub_cases.NAME}:{spec}" for name, spec in sets.items()})
    config.files.edits = "edits.jsonl"
    make_data(config, tmp_path)
    rows = {path.stem: sources.read(str(path)) for path in (tmp_path / "data").glob("*.jsonl")}
    instructions = {name: [row.instruction for row in rows[name]] for name in rows}
    assert instructions["sft"] == [f"sft {n}" for n in range(120)]
    assert instructions["ppo"] == [f"unlabeled {n}" for n in range(200)]
    assert instructions["test"] == ["eval"]
    assert 40 < len(rows["preferences_train"]) < 80  # less the held-out prompts
    assert 40 < len(rows["edits_train"]) < 60


def test_a_folder_is_named_as_an_id_is(folder):
    assert len(sources.read(f"{folder}:alpaca_instructions:unlabeled")) == 5
    for spec, message in (
        (":alpaca_instructions", "has the splits preference, sft, unlabeled, val; choose one: "),
        (":alpaca_instructions:gold", "datasets cannot load it .*gold.*; give ORG/NAME"),
        ("", "is a folder; name the files in it"),
    ):
        with pytest.raises(InputError, match=message):
            sources.read(f"{folder}{spec}")


def test_files_of_a_folder_without_a_card(folder):
    """The split that is only one or called train needs no name; a wrong row has its number."""
    rows = [hub_cases.pair("a"), hub_cases.pair("a", preference=3)]
    for path, count in (("x/train", 1), ("x/test", 1), ("y/dev", 2)):
        (folder.parent / path).parent.mkdir(exist_ok=True)
        write_jsonl(folder.parent / f"{path}.jsonl", rows[:count])
    name = folder.parent.name
    assert len(sources.read(f"{name}/x:default,{name}/x::test,{name}/x:default:train")) == 3
    (folder.parent / "w").mkdir()
    for file, row in (("a", rows[0]), ("b", rows[0] | {"another": 1})):
        write_jsonl(folder.parent / f"w/{file}.jsonl", [row])
    (folder.parent / "z").mkdir()
    (folder.parent / "z/z.py").write_text("import datasets\n")
    for spec, message in (
        (f"{name}/y:default", f"{name}/y:default:row 2: preference is 3"),
        (f"{name}/w::", r"datasets cannot load it \(.*another.* column names don't match\)"),
        ("no_such/thing", r"no_such/thing: datasets cannot load it .*; give ORG"),
        (f"{name}/z::", r"script.*give its data files"),
    ):
        with pytest.raises(InputError, match=message):
            sources.read(spec)


def test_a_folder_with_the_name_of_a_format(folder):
    """`datasets` has formats called json and parquet."""
    write_jsonl(Path("json/train.jsonl"), [hub_cases.instruction("a")])
    assert sources.read("json:default:train") == [Instruction("a", "", "a: yes.")]


def test_what_names_a_dataset():
    for source in ("org/name", "org/name:config:split", ".:"):
        assert hub_datasets.is_dataset(source)
    for source in ("nowhere:config", "org/name:a:b:c", "a/b/c:config", ""):
        assert not hub_datasets.is_dataset(source)


READ = """
import json, sys
from fgrlhf_jax.data import sources
from fgrlhf_jax.errors import InputError
for spec in sys.argv[1:]:
    try:
        print(json.dumps(len(sources.read(spec))))
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_ids_of_the_hub_where_the_dataset_ships_a_script(tmp_path):
    """Another process, as `datasets` asks for the hub's address when it is imported."""
    good = [f"{hub_cases.NAME}:{name}" for name in SIZES]
    bad = {
        f"{hub_cases.NAME}": "has the configs alpaca_farm_evaluation, alpaca_gpt4_preference, ",
        f"{hub_cases.NAME}:alpaca_instructions": "has the splits preference, sft, unlabeled, val; "
        f"choose one: {hub_cases.NAME}:alpaca_instructions:preference",
        f"{hub_cases.NAME}:alpaca_instructions:gold": "has the splits preference, sft",
        "tatsu-lab/nothing:a:b": "datasets cannot load it (Dataset 'tatsu-lab/nothing' doesn't",
    }
    with hub_cases.serve() as server:
        process = subprocess.run(
            [sys.executable, "-c", READ, *good, *bad],
            env=hub_cases.environment(server, tmp_path),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert results[: len(good)] == list(SIZES.values())
    for spec, message in zip(bad, results[len(good) :], strict=True):
        assert message.startswith(f"{spec}: {bad[spec]}"), message
