"""Checkpoints come back as they were saved; bad ones get one clear sentence."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hf_cases import CFG, MODULES, SHAPES, abstract, same, save, tokenizer

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import checksums, heads, hf_files, hf_load, hf_save, llama
from fgrlhf_jax.plan.memory import bytes_per_device
from fgrlhf_jax.runtime import sharding

LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 8192}


@pytest.fixture
def saved(tmp_path):
    return functools.partial(save, tmp_path / "model")


# --- Round trips ---


CASES = [(hf_save.LANGUAGE_MODEL, heads.CausalLM(cfg)) for cfg in SHAPES.values()]
CASES += MODULES.items()


@pytest.mark.parametrize(("architecture", "module"), CASES, ids=[*SHAPES, *MODULES])
def test_every_shape_and_architecture_comes_back(saved, architecture, module):
    extra = {"loss": "token_edit", "head": {"a": 1}}
    folder, params = saved(architecture, module, extra=extra)
    same(hf_load.load_params(folder, abstract(module)), params)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config["fgrlhf"].items() >= extra.items()
    text = "the cat  sat\n"
    assert hf_load.load_tokenizer(folder).encode(text) == tokenizer().encode(text)
    assert hf_load.load_tokenizer(folder).eos_token == "</s>"
    assert hf_load.read_config(folder) == module.cfg
    # a second export replaces the first, and leaves nothing else behind
    saved(architecture)
    assert [child.name for child in folder.parent.iterdir()] == ["model"]


def test_shards_are_small_and_arrays_land_sharded(saved):
    module = MODULES[hf_save.LANGUAGE_MODEL]
    folder, params = saved(max_shard_bytes=20_000)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    largest = max(x.nbytes for x in safetensors.numpy.load_file(files[0]).values())
    assert all(file.stat().st_size < 20_000 + largest + 2000 for file in files)
    mesh = sharding.make_mesh("2,2,2")
    wanted = sharding.abstract(abstract(module), mesh)
    with jax.set_mesh(mesh):
        loaded = hf_load.load_params(folder, wanted)
    same(loaded, params)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(wanted), strict=True):
        assert got.sharding == want.sharding
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert bytes_per_device(loaded) < 0.5 * size
    # and what is sharded is saved whole
    hf_save.save(folder, loaded, CFG, tokenizer(), architecture=hf_save.LANGUAGE_MODEL)
    same(hf_load.load_params(folder, abstract(module)), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64], ids=str)
def test_other_float_types_become_float32(saved, dtype):
    folder, params = saved()
    rewrite(folder, lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
    loaded = hf_load.load_params(folder, abstract(MODULES[hf_save.LANGUAGE_MODEL]))
    same(loaded, jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), params))


def test_a_part_can_be_loaded_and_the_lm_head_becomes_the_action_table(saved):
    folder, params = saved()
    want = abstract(MODULES[hf_save.STATE_ACTION])
    backbone = hf_load.load_params(folder, {"backbone": want["backbone"]})
    same(backbone, {"backbone": params["backbone"]})
    part = hf_load.load_params(folder, {"head": {"unembed": want["head"]["unembed"]}})
    np.testing.assert_array_equal(part["head"]["unembed"], params["lm_head"]["kernel"].T)
    folder, params = saved(module=heads.CausalLM(SHAPES["tied"]))
    part = hf_load.load_params(folder, {"head": {"unembed": want["head"]["unembed"]}})
    np.testing.assert_array_equal(part["head"]["unembed"], params["backbone"]["embed"]["embedding"])


def test_spare_heads_rotary_buffers_and_a_bare_backbone_are_read(saved):
    folder, params = saved(hf_save.TOKEN_REWARD)
    spare = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    rewrite(folder, lambda tensors: tensors | spare)
    want = abstract(MODULES[hf_save.TOKEN_REWARD])
    backbone = hf_load.load_params(folder, {"backbone": want["backbone"]})
    same(backbone, {"backbone": params["backbone"]})
    rewrite(folder, lambda old: {k.removeprefix("model."): v for k, v in old.items()})
    same(hf_load.load_params(folder, want), params)


# --- Bad input ---


def rewrite(folder, change):
    """Replace the weights, as another program would: without our checksums."""
    hf_cases.rewrite(folder / "model.safetensors", change)
    configure(folder)


def configure(folder, **fields):
    hf_cases.configure(folder / "config.json", **{"fgrlhf": {}} | fields)


def load(folder):
    return hf_load.load_params(folder, abstract(MODULES[hf_save.LANGUAGE_MODEL]))


def test_missing_surplus_and_misshapen_come_in_one_error(saved):
    folder, _ = saved()

    def change(tensors):
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(32, np.float32)
        tensors["model.layers.2.mlp.up_proj.weight"] = np.ones((48, 32), np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = np.ones((48, 32), np.float32)
        return tensors

    rewrite(folder, change)
    with pytest.raises(InputError) as error:
        load(folder)
    path, *problems = str(error.value).split("; ")
    assert path.endswith("these weights do not fit the model")
    problems = dict(problem.split(": model.") for problem in problems)
    assert {problem: set(names.split(", model.")) for problem, names in problems.items()} == {
        "missing": {"norm.weight", "layers.1.mlp.up_proj.weight"},
        "surplus": {"layers.0.self_attn.q_proj.bias", "layers.2.mlp.up_proj.weight"},
        "misshapen": {"layers.0.mlp.down_proj.weight is [48, 32] where [32, 48] is expected"},
    }


BAD_NORM = np.where(np.arange(32) == 3, np.nan, 1).astype("f")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm.weight", BAD_NORM, "infinite numbers in model.norm.weight;"),
        ("model.layers.1.mlp.up_proj.weight", np.full((48, 32), np.inf), "infinite .*1.mlp.up"),
        ("model.norm.weight", np.ones(32, np.int8), r"model\.norm\.weight is quantized as I8"),
        ("model.embed_tokens.weight", np.ones((310, 32), "f"), "310 tokens and the model's 300"),
    ],
    ids=["nan", "inf", "int8", "vocabulary"],
)
def test_weights_that_cannot_be_used(saved, name, value, message):
    folder, _ = saved()
    rewrite(folder, lambda tensors: tensors | {name: value})
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox'"),
        ({"model_type": "mistral"}, "sliding_window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": "llama3"}, "malformed"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"num_hidden_layers": 0}, "num_layers=0 must be above 0"),
        ({"rope_theta": 0}, "rope_theta=0.0 must be above 0"),
        ({"rope_theta": -1e4}, "rope_theta=-10000.0 must be above 0"),
        ({"rope_theta": float("nan")}, "rope_theta=nan is no finite float"),
        ({"rope_theta": None}, "'rope_theta'"),
        ({"rope_theta": ...}, "'rope_theta'"),
        ({"rope_parameters": {"rope_theta": 0.0}}, "rope_theta=0.0 must be above 0"),
        ({"rope_parameters": {}, "rope_theta": ..., "fgrlhf": ...}, "'rope_theta'"),
        ({"rope_scaling": {**LLAMA_3, "factor": 0}}, "rope_scaling must be above 0"),
        ({"rope_scaling": {**LLAMA_3, "factor": "8"}}, "factor='8' is no float"),
        ({"num_key_value_heads": 0}, "num_kv_heads=0 must be above 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_heads=0 must be above 0"),
        ({"head_dim": 0}, "head_dim=0 must be above 0"),
        ({"head_dim": 8.5}, "head_dim=8.5 is no finite int"),
        ({"hidden_size": "wide"}, "hidden_size='wide' is no int"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' is no bool"),
        ({"initializer_range": float("inf")}, "initializer_range=inf is no finite float"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(saved, fields, message):
    """Our exports' digests are deleted here; what must be there is not guessed."""
    folder, _ = saved()
    configure(folder, **fields)
    with pytest.raises(InputError, match=re.escape(message)):
        hf_load.read_config(folder)


def test_a_folder_of_others_may_have_no_rope_theta_and_no_kv_heads(saved):
    cfg = dataclasses.replace(CFG, num_kv_heads=CFG.num_heads)
    folder, _ = saved(module=heads.CausalLM(cfg))
    names = ("rope_theta", "num_key_value_heads", "head_dim")
    for value in (None, ...):
        configure(folder, fgrlhf=..., **dict.fromkeys(names, value))
        assert hf_load.read_config(folder) == cfg


def test_a_mistral_without_a_window_is_a_llama_and_a_malformed_config_nothing(saved):
    folder, _ = saved()
    configure(folder, model_type="mistral", sliding_window=None)
    assert hf_load.read_config(folder) == CFG
    for text in ("", "{", "[]", "\x00\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"config\.json: .*sound copy"):
            hf_load.read_config(folder)


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_one_flipped_bit_of_an_export_is_noticed(saved):
    folder, _ = saved(hf_save.STATE_ACTION)
    wanted = abstract(MODULES[hf_save.STATE_ACTION])
    for name in ("model.safetensors", "head.safetensors"):
        for at in (0, 7, 20, 200, 5000, -1):
            flip(folder / name, at)
            with pytest.raises(InputError, match=f"{name}: is damaged"):
                hf_load.load_params(folder, wanted)
            flip(folder / name, at)
    hf_load.load_params(folder, wanted)


def test_an_export_is_hashed_once_as_long_as_it_stays_as_it_is(saved, monkeypatch):
    folder, _ = saved(hf_save.STATE_ACTION)
    monkeypatch.setattr(checksums, "SETTLED_NS", 10_000_000)
    hashed, digest = [], checksums.hashlib.file_digest

    def count(stream, name):
        hashed.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr(checksums.hashlib, "file_digest", count)
    load = functools.partial(hf_load.load_params, folder, abstract(MODULES[hf_save.STATE_ACTION]))
    every = [name for name in checksums.files(folder) if name != "config.json"]
    for expected in (every, ["model.safetensors"]):
        time.sleep(0.02)
        load()
        load()
        assert sorted(hashed) == expected
        flip(folder / "model.safetensors", -1)
        with pytest.raises(InputError, match=r"model\.safetensors: is damaged"):
            load()
        flip(folder / "model.safetensors", -1)
        hashed.clear()


def test_a_damaged_or_short_file_of_anyone_is_noticed(saved):
    folder, _ = saved()
    rewrite(folder, dict)
    file = folder / "model.safetensors"
    for at in (0, 7, 8, 20):  # of its header
        flip(file, at)
        with pytest.raises(InputError, match=r"damaged|do not fit"):
            load(folder)
        flip(file, at)
    whole = file.read_bytes()
    for length in (0, 4, 100, 50_000, -1):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors: is damaged or cut short"):
            load(folder)


def test_missing_weight_files_and_tokenizers_that_cannot_be_used(saved):
    folder, _ = saved(max_shard_bytes=20_000)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match=r"model-0000.*safetensors: is damaged, missing"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    configure(folder)
    with pytest.raises(InputError, match="from safetensors files only"):
        load(folder)
    hf_cases.configure(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InputError, match="no EOS token"):
        hf_load.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no usable tokenizer"):
        hf_load.load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json or"):
        hf_load.load_tokenizer(folder)


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    import huggingface_hub

    downloads = []

    def no_network(name, **_):
        downloads.append(name)
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    (tmp_path / "file.bin").write_bytes(b"")
    for path in (tmp_path / "nothing.gguf", tmp_path / "file.bin"):
        with pytest.raises(InputError, match="no such model"):
            hf_load.read_config(path)
    with pytest.raises(InputError, match=f"^{tmp_path}: has no config.json; give a Hugging Face"):
        hf_load.read_config(tmp_path)
    assert not downloads
    with pytest.raises(InputError, match="someone/model: neither a local folder nor"):
        hf_load.read_config("someone/model")
    assert downloads == ["someone/model"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert hf_files.resolve("someone/model") == tmp_path
    (tmp_path / "run" / "export").mkdir(parents=True)
    for path in (tmp_path / "run", tmp_path / "run" / "export"):
        assert hf_files.resolve(path) == tmp_path / "run" / "export"


@pytest.mark.slow
def test_loading_needs_a_model_and_a_few_tensors_of_memory(tmp_path):
    """In a process of its own, since memory once used is not given back."""
    code = """
        import sys
        from pathlib import Path
        import jax
        from hf_cases import abstract
        from fgrlhf_jax.models import heads, hf_load
        from fgrlhf_jax.runtime import sharding

        def memory(field):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(x.split()[1]) for x in lines if x.startswith(field)) * 1024

        folder, mesh = Path(sys.argv[1]), sharding.make_mesh("1,2,1", jax.devices()[:2])
        module = heads.CausalLM(hf_load.read_config(folder))
        wanted = sharding.abstract(abstract(module), mesh)
        hf_load.load_params(folder, wanted)  # what compiling takes is not the question
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = memory("VmRSS")
        params = jax.block_until_ready(hf_load.load_params(folder, wanted))
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        print(size, memory("VmHWM") - before)
    """
    cfg = llama.LlamaConfig(len(tokenizer()), 512, 2048, 8, 8, 8, 64)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract(heads.CausalLM(cfg)))
    options = {"architecture": hf_save.LANGUAGE_MODEL, "max_shard_bytes": 50_000_000}
    hf_save.save(tmp_path / "m", params, cfg, tokenizer(), **options)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m")]
    paths = os.pathsep.join(["tests/support", os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    size, growth = map(int, done.stdout.split())
    tensor = 512 * 2048 * 4
    assert size > 125e6
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 3
    assert 0.9 * size < growth < size + 10 * tensor, (size, growth)
