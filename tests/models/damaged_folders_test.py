"""Files of a model's folder with other values: what comes of it is a model or one sentence."""

import copy
import json
import random
import shutil

import pytest
from hf_cases import configure, save, save_adapter
from mutation_cases import JUNK, paths

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_files, hf_load, peft
from fgrlhf_jax.models.language_model import LanguageModel

FAULTS = [
    ("base", "config.json", {"architectures": 3}),
    ("base", "tokenizer_config.json", {"model_max_length": "long"}),
    ("adapter", "adapter_config.json", {"target_modules": [["q_proj"]]}),
    ("adapter", "adapter_config.json", {"modules_to_save": [{}]}),
    ("adapter", "adapter_config.json", {"base_model_name_or_path": "x" * 5000}),
    ("adapter", "adapter_config.json", {"base_model_name_or_path": "a/" * 3000}),
]
FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and an adapter of it, as another program writes them: without our checksums."""
    root = tmp_path_factory.mktemp("models")
    base, _ = save(root / "base")
    adapter, _ = save_adapter(root / "adapter", base)
    (adapter / "fgrlhf.json").unlink()
    configure(base / "config.json", fgrlhf={})
    return root


def use(folder, file, content) -> str:
    """The sentence of a folder with a file of that content, "" where it can be used."""
    before = (folder / file).read_text()
    (folder / file).write_text(json.dumps(content))
    try:
        peft.read_lora(folder)
        hf_load.read_generation_config(folder)
        LanguageModel.load(folder, lazy=True, log=lambda _: None).encode("the cat")
        return ""
    except InputError as error:
        return str(error)
    finally:
        (folder / file).write_text(before)


@pytest.mark.parametrize(("name", "file", "fields"), FAULTS)
def test_fields_of_a_wrong_type(folders, name, file, fields):
    content = json.loads((folders / name / file).read_text()) | fields
    message = use(folders / name, file, content)
    assert "\n" not in message
    assert len(message) < 900


@pytest.mark.parametrize("files", [["x"], [3], None, ["x" * 5000], [""]])
def test_an_index_of_odd_files(folders, tmp_path, files):
    shutil.copytree(folders / "base", tmp_path / "model")
    weight_map = files and dict.fromkeys("a", files[0])
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"is missing; weights are|has no weight_map of files"):
        hf_files.read_tensors(tmp_path / "model")


def test_mutated_files(request, folders):
    rng, refused = random.Random(0), 0
    files = [*(("base", file) for file in FILES), ("adapter", "adapter_config.json")]
    count = request.config.getoption("--fuzz-records") // 50
    for _ in range(count):
        name, file = rng.choice(files)
        content = json.loads((folders / name / file).read_text())
        for _ in range(rng.randrange(1, 4)):
            *path, last = rng.choice([*paths(content)])
            parent = content
            for key in path:
                parent = parent[key]
            parent[last] = copy.deepcopy(rng.choice([x for x in JUNK if is_json(x)]))
        message = use(folders / name, file, content)
        assert len(message) < 900
        assert "\n" not in message
        refused += bool(message)
    assert 0.1 * count < refused < 0.9 * count


def is_json(value) -> bool:
    try:
        return bool(json.dumps(value))
    except TypeError:
        return False
