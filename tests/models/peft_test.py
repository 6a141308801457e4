"""Adapters in PEFT's form: written and read bit for bit, merged as they are read, or refused."""

import dataclasses
import re
import shutil

import chex
import hf_cases
import jax
import numpy as np
import pytest
import tiny_cases
from hf_cases import ADAPTER, MODULES, SHAPES, abstract, same, save, save_adapter, tokenizer

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save, lora, peft, quantize
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.runtime import sharding

LANGUAGE_MODEL = MODULES[hf_save.LANGUAGE_MODEL]
SOME = Lora(3, 5.0, r"attention/(q|v)$|mlp/down", rslora=True)


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "base")[0]


@pytest.fixture
def adapter(tmp_path, base):
    return save_adapter(tmp_path / "adapter", base)[0]


def configure(folder, **fields):
    hf_cases.configure(folder / "adapter_config.json", **fields)


def foreign(folder):
    """The same as another program writes it: without what only we know."""
    (folder / "fgrlhf.json").unlink()
    return folder


def rewrite(folder, change, name="adapter_model.safetensors"):
    hf_cases.rewrite(folder / name, change)


def parts(params: dict, names) -> dict:
    return {name: params[name] for name in names}


@pytest.mark.parametrize("settings", [ADAPTER, SOME], ids=["all", "some"])
@pytest.mark.parametrize("architecture", MODULES)
def test_every_architecture_comes_back_apart_and_merged(tmp_path, architecture, settings):
    base, params = save(tmp_path / "base")
    module = MODULES[architecture]
    folder, written = save_adapter(tmp_path / "adapter", base, architecture, lora=settings)
    saved, wanted = peft.read_lora(folder), abstract(module)
    assert dataclasses.replace(saved, targets=settings.targets) == settings
    peft.check_same(folder, settings)
    assert (hf_load.read_config(folder), peft.base_of(folder)) == (hf_cases.CFG, base)
    same(hf_load.load_params(folder, written), written)
    backbone = {"backbone": wanted["backbone"]}
    same(hf_load.load_base(folder, backbone)[0], {"backbone": params["backbone"]})
    merged = hf_load.load_params(folder, wanted)
    heads = {name: tree for name, tree in (params | written).items() if name in wanted}
    if "unembed" in wanted.get("head", {}):  # the language model's
        heads["head"] = heads["head"] | {"unembed": params["lm_head"]["kernel"].T}
    ours = tiny_cases.merged(params | heads | {"lora": written["lora"]}, settings.scale)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6),
        merged,
        parts(ours, wanted),
    )
    assert hf_load.load_tokenizer(folder).encode("the cat") == tokenizer().encode("the cat")
    card = (folder / "README.md").read_text()
    assert "base_model_relation: adapter" in card
    assert f"| Adapter of | {base} |" in card
    assert not (folder / "config.json").exists()  # or transformers looks for weights beside it


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_merged_onto_any_mesh(tmp_path, shape):
    module = heads.CausalLM(SHAPES[shape])
    base, params = save(tmp_path / "base", module=module)
    folder, written = save_adapter(tmp_path / "adapter", base, module=module)
    mesh = sharding.make_mesh("2,2,2")
    with jax.set_mesh(mesh):
        loaded = hf_load.load_params(folder, sharding.abstract(abstract(module), mesh))
        same(hf_load.load_params(folder, sharding.abstract(written, mesh)), written)
    ours = tiny_cases.merged(params | written, ADAPTER.scale)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), loaded, ours)


def test_an_adapter_of_anybody_has_its_bases_tokenizer_and_defaults(tmp_path, monkeypatch):
    """Found from where one stands, as peft does, or within the adapter's folder."""
    base, _ = save(tmp_path / "base", extra={"data": {"template": "alpaca"}})
    folder = foreign(save_adapter(tmp_path / "adapter", base)[0])
    (folder / "generation_config.json").unlink()
    for file in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        file.unlink()
    want = hf_load.load_params(folder, abstract(LANGUAGE_MODEL))
    bare = "base_model.model.layers"
    rewrite(
        folder, lambda old: {k.replace(f"{bare[:17]}model.layers", bare): v for k, v in old.items()}
    )
    configure(folder, base_model_name_or_path="base", lora_alpha=6, use_rslora=...)
    monkeypatch.chdir(tmp_path)
    assert hf_load.end_ids("adapter", None) == hf_load.end_ids(base, None)
    same(hf_load.load_params("adapter", abstract(LANGUAGE_MODEL)), want)
    monkeypatch.chdir("/")
    shutil.move(base, folder / "base")
    same(hf_load.load_params(folder, abstract(LANGUAGE_MODEL)), want)
    assert hf_load.load_tokenizer(folder).encode("the cat") == tokenizer().encode("the cat")
    assert hf_load.trained_template(folder) == "alpaca"
    assert peft.base_name(folder) == str(folder / "base")


def test_a_base_may_be_elsewhere_in_other_files_but_no_other(tmp_path, base, adapter):
    wanted = abstract(LANGUAGE_MODEL)
    before = hf_load.load_params(adapter, wanted)
    assert hf_load.base_digest(adapter) == hf_load.base_digest(base)
    shards = save(tmp_path / "shards", max_shard_bytes=20_000)[0]
    configure(adapter, base_model_name_or_path=str(shards))
    same(hf_load.load_params(adapter, wanted), before)
    hf_cases.configure(base / "config.json", fgrlhf={})
    configure(adapter, base_model_name_or_path=str(base))
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        rewrite(base, lambda tensors, n=name: tensors | {n: tensors[n] * 1.01}, "model.safetensors")
        for load in (hf_load.load_params, hf_load.load_base):
            with pytest.raises(InputError, match="is an adapter of another base: the weights in"):
                load(adapter, wanted)
        backbone = {"backbone": wanted["backbone"]}  # of which a reward model's adapter may be
        if name == "lm_head.weight":
            same(hf_load.load_params(adapter, backbone), {"backbone": before["backbone"]})


def test_of_its_files_only_the_path_of_the_base_may_change(base, adapter):
    configure(adapter, lora_alpha=7)
    with pytest.raises(InputError, match=r"adapter_config\.json: is damaged"):
        hf_load.read_config(adapter)
    configure(adapter, lora_alpha=6)
    hf_load.load_params(adapter, abstract(LANGUAGE_MODEL))
    rewrite(adapter, lambda tensors: {k: v * 2 for k, v in tensors.items()})
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: is damaged.*fgrlhf\.json"):
        hf_load.load_params(adapter, abstract(LANGUAGE_MODEL))


NEW = {"base_model.model.model.embed_tokens.weight": np.ones((300, 32), "f")}
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
LAST = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3', which is not supported; merge"),
        ({"peft_type": ...}, {}, "peft_type is None"),
        ({"use_dora": True}, {}, "use_dora is True, which"),
        ({"bias": "lora_only"}, {}, "bias is 'lora_only'"),
        ({"kasa_config": {"beta": 1}}, {}, "kasa_config is {'beta': 1}, which"),
        ({"use_what_is_yet_to_come": True}, {}, "use_what_is_yet_to_come is True, which"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern is {'q_proj': 2}"),
        ({"alpha_pattern": {"q_proj": 2}}, {}, "alpha_pattern is {'q_proj': 2}"),
        ({"layers_to_transform": [0]}, {}, "layers_to_transform is [0]"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights is 'pissa'"),
        ({"revision": "abc"}, {}, "revision is 'abc'"),
        ({"target_modules": ["q_proj", "lm_head"]}, {}, "it adapts lm_head, which"),
        ({"target_modules": ["w1"]}, {}, "it adapts w1, which"),
        ({"modules_to_save": ["embed_tokens"]}, {}, "it adapts embed_tokens, which"),
        ({"target_modules": "all-linear"}, NEW, f"it has {next(iter(NEW))}, which"),
        ({"r": "8"}, {}, "malformed field (ValueError: r='8'"),
        ({"lora_alpha": ...}, {}, "malformed field (KeyError: 'lora_alpha'"),
        ({"base_model_name_or_path": None, "r": ...}, {}, "cannot be had (it names none); write"),
        ({"base_model_name_or_path": "nowhere"}, {}, "cannot be had (nowhere: no such model;"),
        ({"base_model_name_or_path": ""}, {}, "adapter: the base of this adapter cannot be had"),
        ({"base_model_name_or_path": "../adapter"}, {}, "is an adapter too, which is not supporte"),
        ({}, {FIRST: np.ones((4, 30), "f")}, "lora_A.weight is [4, 30] where that of this base is"),
        ({}, {LAST: None}, "down_proj.lora_B.weight is not there where that of this base is [32"),
        ({}, {FIRST.replace("0", "2"): np.ones((4, 32), "f")}, "layers.2.self_attn.q_proj.lora_A."),
        ({"r": 2}, {}, "another base than"),
        ({}, {FIRST: np.full((4, 32), np.nan, "f")}, "NaN or infinite numbers in model.layers.0."),
    ],
    ids=str,
)
def test_what_is_refused(adapter, fields, change, message):
    foreign(adapter)
    configure(adapter, **fields)
    if change:
        rewrite(adapter, lambda old: {k: v for k, v in (old | change).items() if v is not None})
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        hf_load.load_params(adapter, abstract(LANGUAGE_MODEL))
    assert ("cannot be had" in str(caught.value)) == ("cannot be had" in message)


def test_whole_weights_beside_an_adapter_are_ambiguous(base, adapter):
    shutil.copy(base / "model.safetensors", adapter)
    with pytest.raises(InputError, match=r"delete adapter_config.json or model.safetensors$"):
        hf_load.read_config(adapter)


def test_a_classifiers_adapter_is_no_language_model(tmp_path, base):
    ours = save_adapter(tmp_path / "ours", base, hf_save.TOKEN_REWARD)[0]
    theirs = foreign(save_adapter(tmp_path / "theirs", base, hf_save.SEQUENCE_REWARD)[0])
    for folder in (ours, theirs):
        with pytest.raises(InputError, match=r"is a reward model .*, and a language model is exp"):
            hf_load.check_language_model(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8}, "lora.rank=8: the adapter in {} has another; go on with --config."),
        ({"alpha": 32.0}, "lora.alpha=32.0: .*go on with --config.lora.alpha='6.0', or give its"),
        ({"rslora": True}, "lora.rslora=True: "),
        ({"targets": "mlp"}, "lora.targets=mlp: .*--config.lora.targets='.'"),
    ],
)
def test_training_goes_on_with_the_same_settings_only(adapter, base, settings, message):
    peft.check_same(base, Lora(8))
    peft.check_same(adapter, dataclasses.replace(ADAPTER, targets="attention|mlp"))
    with pytest.raises(InputError, match=message.format(adapter)):
        peft.check_same(adapter, dataclasses.replace(ADAPTER, **settings))


def test_training_goes_on_from_the_same_numbers(tmp_path, base):
    folder, written = save_adapter(tmp_path / "adapter", base)
    mesh = sharding.make_mesh("1,-1,1", jax.devices()[:1])
    wanted = sharding.abstract(written["lora"], mesh)
    same(hf_load.initial_adapter(folder, jax.random.key(0), wanted), written["lora"])
    fresh = hf_load.initial_adapter(base, jax.random.key(0), wanted)
    same(fresh, lora.init_adapter(jax.random.key(0), wanted))


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_a_merged_export_is_whole(tmp_path, base, base_dtype):
    """Of a quantized base it has the weights that were computed with, and its card says so."""
    params = save(tmp_path / "again")[1] | hf_cases.adapter_params(LANGUAGE_MODEL, SOME)
    params = quantize.quantize_params(params, base_dtype)
    cfg = dataclasses.replace(hf_cases.CFG, lora_scale=SOME.scale)
    options = {"architecture": hf_save.LANGUAGE_MODEL, "origin": Origin(str(base))}
    options["adapter"] = dataclasses.replace(SOME, base_dtype=base_dtype)
    hf_save.save(tmp_path / "merged", params, cfg, tokenizer(), **options, merged=True)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"| Adapter merged into | {base} |" in card
    assert "base_model_relation" not in card
    assert (
        ("in int8, which changes a number of its linear layers by" in card)
        == ("the weights here are these rounded numbers with the adapter" in card)
        == (base_dtype == "int8")
    )
    assert peft.read_lora(tmp_path / "merged") is None
    loaded = hf_load.load_params(tmp_path / "merged", abstract(LANGUAGE_MODEL))
    chex.assert_trees_all_close(loaded, tiny_cases.merged(params, SOME.scale), atol=1e-6)
