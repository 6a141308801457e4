"""The benchmarks' models: Hugging Face folders that this project and the peers both load."""

import dataclasses
from pathlib import Path

import jax

from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save, llama, lora
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.training import setup

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "LICENSE"
SHAPES = SIZES | {
    "llama_1b": llama.LlamaConfig(
        *(32000, 2048, 8192, 16, 32, 8, 64), max_position=2048, tie_embeddings=True
    )
}
LOSS = {"loss": "sequence", "consistency_weight": 0.0, "center_weight": 0.0}


def language_model(path: str, cache: Path, size: str = "smollm2_135m") -> Path:
    """The folder of a model: an existing one, a converted GGUF file, or random weights.

    Args:
      path: a Hugging Face folder or a .gguf file; "" for random weights.
      cache: folder where models are created once.
      size: name in SHAPES, for random weights.

    Raises:
      InputError: for any other path.
    """
    if path and Path(path).is_dir():
        hf_load.check_language_model(path)
        return Path(path).resolve()
    if path and not (path.endswith(".gguf") and Path(path).is_file()):
        raise InputError(f"model={path}: is no folder and no .gguf file; give one of these")
    folder = cache / (Path(path).stem if path else f"random_{size}")
    if not (folder / "config.json").is_file():
        print(f"creating {folder}", flush=True)
        if path:
            model = LanguageModel.load(path, lazy=True)
            _save(folder, model.read_params(), model.module.cfg, model.tokenizer)
        else:
            _save(
                folder, *random_model(size), dtype="bfloat16" if size == "llama_1b" else "float32"
            )
    return folder.resolve()


def random_model(size: str) -> tuple[dict, llama.LlamaConfig, object]:
    """Random parameters, configuration, and a tokenizer trained on this project's documents."""
    cfg = SHAPES[size]
    cfg = dataclasses.replace(cfg, vocab_size=max(cfg.vocab_size, 512))  # room for all bytes
    pages = [TEXT, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = train_tokenizer([page.read_text() for page in pages], cfg.vocab_size)
    module, mesh = heads.CausalLM(cfg), sharding.make_mesh("1,-1,1")
    with jax.set_mesh(mesh):
        abstract = heads.abstract_params(module, mesh)
        params = setup.random_params(module, jax.random.key(0), abstract)
    return params, cfg, tokenizer


def _save(folder: Path, params: dict, cfg: llama.LlamaConfig, tokenizer, **options) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    options["architecture"] = hf_save.LANGUAGE_MODEL
    hf_save.save(folder, params, cfg, tokenizer, **options)


def reward_model(
    model: Path, cache: Path, max_length: int, adapters: lora.Lora | None = None
) -> Path:
    """A reward model with the backbone of ``model`` and a random head, readable by TRL too.

    Args:
      adapters: saves an adapter of ``model`` instead, which only this project reads.
    """
    folder = cache / f"reward_{model.name}{'_lora' if adapters else ''}"
    if (folder / "config.json").is_file():
        return folder.resolve()
    print(f"creating {folder}", flush=True)
    policy = LanguageModel.load(model, lazy=True)
    module = make_module(policy.module.cfg, LOSS["loss"], "after")
    with jax.set_mesh(policy.mesh):
        abstract = heads.abstract_params(module, policy.mesh)
        params = setup.random_params(module, jax.random.key(1), {"head": abstract["head"]})
        if adapters:
            trained, _ = lora.split(abstract, adapters, policy.mesh)
            params["lora"] = lora.init_adapter(jax.random.key(1), trained["lora"])
    data = {
        "template": "plain",
        "max_length": max_length,
        "max_prompt_length": max_length - 1,
        "overlong": "truncate",
        "alignment": "levenshtein",
        "append_eos": True,
    }
    meta = RewardMeta("after", LOSS, Normalization(0.0, 1.0), data)
    options = {"adapter": adapters, "origin": Origin(str(model))} if adapters else {}
    if not adapters:
        params["backbone"] = policy.read_params()["backbone"]
    cache.mkdir(parents=True, exist_ok=True)
    RewardModel(module, params, policy.tokenizer, meta, policy.mesh).save(folder, **options)
    return folder.resolve()
