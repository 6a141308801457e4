"""Adapters against torch's peft: logits, rewards and gradients, written here and written there."""

import dataclasses

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from hf_cases import ADAPTER, MODULES, SHAPES, abstract, save, save_adapter

from fgrlhf_jax.models import heads, hf_load, hf_names, hf_save, lora, peft
from fgrlhf_jax.models.lora import Lora

pytestmark = pytest.mark.parity
SETTINGS = {"all": ADAPTER, "some": Lora(3, 5.0, r"attention/(q|v)$|mlp/down", rslora=True)}
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 20))
AUTO = {
    hf_save.LANGUAGE_MODEL: "CausalLM",
    hf_save.TOKEN_REWARD: "TokenClassification",
    hf_save.SEQUENCE_REWARD: "SequenceClassification",
}
TASKS = {
    "CausalLM": "CAUSAL_LM",
    "TokenClassification": "TOKEN_CLS",
    "SequenceClassification": "SEQ_CLS",
}


def theirs(folder, architecture=hf_save.LANGUAGE_MODEL):
    """With peft; a warning of a missing tensor is an error, as all warnings are."""
    import peft as torch_peft

    options = {} if architecture == hf_save.LANGUAGE_MODEL else {"num_labels": 1}
    auto = getattr(torch_peft, f"AutoPeftModelFor{AUTO[architecture]}")
    return auto.from_pretrained(str(folder), **options).eval()


def their_logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def our_outputs(folder, module) -> np.ndarray:
    params = hf_load.load_params(folder, abstract(module))
    args = (jnp.asarray(TOKENS), *heads.positions_and_mask(jnp.ones(TOKENS.shape, bool)))
    return np.asarray(jax.jit(module.apply)({"params": params}, *args))


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    ("shape", "settings"), [*zip(SHAPES, ["all", "some"] * 2, strict=True), ("plain", "some")]
)
def test_peft_gives_our_logits(tmp_path, shape, settings):
    module = heads.CausalLM(SHAPES[shape])
    base, _ = save(tmp_path / "base", module=module)
    folder, _ = save_adapter(tmp_path / "adapter", base, module=module, lora=SETTINGS[settings])
    want = their_logits(theirs(folder))
    close(our_outputs(folder, module), want)
    assert np.abs(want - our_outputs(base, module)).max() > 0.1
    redirected = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    close(their_logits(redirected), want)


@pytest.mark.parametrize("architecture", [hf_save.TOKEN_REWARD, hf_save.SEQUENCE_REWARD])
def test_peft_gives_our_rewards(tmp_path, architecture):
    base, _ = save(tmp_path / "base")
    folder, _ = save_adapter(tmp_path / "adapter", base, architecture)
    model = theirs(folder, architecture)
    model.config.pad_token_id = 299
    want, got = their_logits(model), our_outputs(folder, MODULES[architecture])
    is_last = architecture == hf_save.SEQUENCE_REWARD
    close(got[:, -1] if is_last else got, want[:, 0] if is_last else want[..., 0])


def test_peft_refuses_the_state_action_head(tmp_path):
    import peft as torch_peft

    base, _ = save(tmp_path / "base")
    folder, _ = save_adapter(tmp_path / "adapter", base, hf_save.STATE_ACTION)
    with pytest.raises(KeyError, match=peft.STATE_ACTION):
        torch_peft.PeftConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(KeyError, match=peft.STATE_ACTION):
        torch_peft.PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize(
    ("settings", "task"),
    [*((s, "CausalLM") for s in SETTINGS), *zip(SETTINGS, [*AUTO.values()][1:], strict=True)],
)
def test_we_read_what_peft_writes(tmp_path, settings, task):
    import peft as torch_peft
    import torch

    torch.manual_seed(0)
    base, _ = save(tmp_path / "base")
    lora_settings = SETTINGS[settings]
    names = ["q_proj", "v_proj", "down_proj"]
    if settings == "all":  # peft's own "all-linear" fails with the head of token rewards
        names = [name.rpartition(".")[2] for name in hf_names.LINEAR.values()]
    if settings == "all" and task == "CausalLM":
        names = "all-linear"
    options = {} if task == "CausalLM" else {"num_labels": 1}
    model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(base, **options)
    config = torch_peft.LoraConfig(
        r=lora_settings.rank,
        lora_alpha=lora_settings.alpha,
        use_rslora=lora_settings.rslora,
        target_modules=names,
        init_lora_weights=False,  # B is random
        task_type=TASKS[task],
    )
    model = torch_peft.get_peft_model(model, config).eval()
    model.config.pad_token_id = 299
    model.save_pretrained(tmp_path / "adapter")
    architecture = next(name for name, auto in AUTO.items() if auto == task)
    got, want = our_outputs(tmp_path / "adapter", MODULES[architecture]), their_logits(model)
    if task == "SequenceClassification":
        got, want = got[:, -1], want[:, 0]
    close(got, want if task != "TokenClassification" else want[..., 0])
    peft.check_same(tmp_path / "adapter", lora_settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_are_pefts_in_float64(tmp_path, settings):
    """Ours in float32 against theirs in float64, of every A and B."""
    import torch

    base, params = save(tmp_path / "base")
    adapters = SETTINGS[settings]
    folder, written = save_adapter(tmp_path / "adapter", base, lora=adapters)
    model = theirs(folder).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    torch.sin(model(torch.from_numpy(TOKENS)).logits).sum().backward()
    module = heads.CausalLM(dataclasses.replace(hf_cases.CFG, lora_scale=adapters.scale))
    args = (jnp.asarray(TOKENS), *heads.positions_and_mask(jnp.ones(TOKENS.shape, bool)))

    @jax.jit
    @jax.grad
    def gradient(trained):
        return jnp.sum(jnp.sin(module.apply(lora.variables(params | trained), *args)))

    ours = gradient({"lora": written["lora"]})["lora"]["backbone"]["layers"]
    torch_layers = model.base_model.model.model.layers
    for part, group in ours.items():
        for layer, pair in group.items():
            module_name = hf_names.LINEAR[f"{part}/{layer}"]
            for number, torch_layer in enumerate(torch_layers):
                linear = torch_layer.get_submodule(module_name)
                for name, got in pair.items():
                    matrix = getattr(linear, name.replace("_a", "_A").replace("_b", "_B"))
                    want = matrix["default"].weight.grad.numpy().T
                    atol = 2e-4 * np.abs(want).max()
                    np.testing.assert_allclose(got[number], want, atol=atol, err_msg=layer)
