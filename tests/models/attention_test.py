"""Flash kernels: the splash kernel's numbers in interpret mode, and what accelerators are given.

Without a device cuDNN's kernel is only seen to be called; ``benchmarks.device`` compares it on one.
"""

import contextlib
import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plan_cases
import pytest
import tiny_cases
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import attention, decoding, heads, llama, sampling
from fgrlhf_jax.ppo import programs
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import sft, supervised

CFG = llama.LlamaConfig(64, 32, 64, 2, 4, 2, 64)  # heads as wide as splash wants them
ROWS = [np.random.default_rng(n).integers(0, 64, n) for n in (100, 1, 33, 130, 60, 7, 80, 90)]
WIDTH = 140


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels of Pallas, run on the CPU."""
    call = pallas.pallas_call
    monkeypatch.setattr(
        pallas, "pallas_call", lambda *args, **how: call(*args, **{**how, "interpret": True})
    )


@pytest.fixture
def cudnn_version(monkeypatch):
    """Lets cuDNN's kernel be traced where jax has no CUDA libraries to ask."""
    name = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(name, lambda: 91000)


@functools.cache
def logits_and_gradient(implementation: str, side: str, mesh: str = ""):
    """Of a loss on all logits of real tokens; without a mesh on one device."""
    model = heads.CausalLM(dataclasses.replace(CFG, attention=implementation))
    params = tiny_cases.parameters(model)
    tokens, mask = tiny_cases.laid_out(ROWS, side, fill=3, width=WIDTH)
    drawn = np.random.default_rng(0).standard_normal((8, WIDTH, 64)).astype(np.float32)
    if side == "left":
        drawn = [np.roll(w, WIDTH - len(row), axis=0) for w, row in zip(drawn, ROWS, strict=True)]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch):
        args = batch["tokens"], *heads.positions_and_mask(batch["mask"])
        logits = model.apply({"params": params}, *args)
        return jnp.sum(jnp.where(batch["mask"][..., None], logits * batch["weight"], 0.0)), logits

    batch = {"tokens": tokens, "mask": mask, "weight": np.stack(drawn)}
    on_mesh = sharding.make_mesh(mesh or "1,1,1", None if mesh else jax.devices()[:1])
    with jax.set_mesh(on_mesh):
        placed = jax.device_put(params, sharding.shardings(params, on_mesh))
        (_, logits), gradient = loss(placed, sharding.put_batch(batch, on_mesh))
    rows = [np.asarray(row)[real] for row, real in zip(logits, mask, strict=True)]
    return np.concatenate(rows), jax.device_get(gradient)


@pytest.mark.parametrize("length", [60, 130, 300])  # one block of queries, three and four
def test_blocks_of_queries_are_all_of_them(length):
    """Values and gradients, against jax's own attention, of masks within the causal triangle."""
    rng = np.random.default_rng(length)
    shapes = ((2, length, heads, 8) for heads in (4, 2, 2, 4))
    q, k, v, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    causal = np.tri(length, dtype=bool)
    attend = causal & (rng.random((2, length, length)) < 0.7) | np.eye(length, dtype=bool)

    def both(function):
        loss = jax.value_and_grad(lambda *heads: jnp.sum(function(*heads) * weight), (0, 1, 2))
        return jax.tree.leaves(jax.jit(loss)(q, k, v))

    ours = both(lambda *heads: attention.self_attention(*heads, attend, "xla"))
    theirs = both(lambda *heads: jax.nn.dot_product_attention(*heads, mask=attend[:, None]))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "mesh"), [("left", ""), ("right", "2,2,2")])
def test_splash_is_xlas_attention(interpreted, side, mesh):
    logits, gradient = logits_and_gradient("splash", side, mesh)
    want_logits, want_gradient = logits_and_gradient("xla", "right")
    np.testing.assert_allclose(logits, want_logits, atol=3e-5)
    for path, want in tiny_cases.by_path(want_gradient).items():
        got = tiny_cases.by_path(gradient)[path]
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), path


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1,1,1", "2,2,2"])
def test_splash_samples_what_xla_does(interpreted, mesh):
    def sampled(implementation: str):
        model = heads.CausalLM(dataclasses.replace(CFG, attention=implementation))
        weights = decoding.decoding_weights(tiny_cases.parameters(model), model)
        tokens, mask = tiny_cases.laid_out([row[:50] for row in ROWS], "left", fill=3, width=50)
        on_mesh = sharding.make_mesh(mesh, None if mesh == "2,2,2" else jax.devices()[:1])
        abstract = decoding.abstract_weights(tiny_cases.parameters(model), model, on_mesh)
        with jax.set_mesh(on_mesh):
            placed = jax.device_put(weights, jax.tree.map(lambda x: x.sharding, abstract))
            batch = sharding.put_batch((tokens.astype(np.int32), mask), on_mesh)
            keys = sampling.row_keys(jax.random.key(0), 8)
            options = {"model": model, "ends": (1,), "max_new": 16}
            return jax.device_get(sampling.generate(placed, *batch, keys, **options))

    splash, xla = sampled("splash"), sampled("xla")
    np.testing.assert_array_equal(splash.tokens_BT, xla.tokens_BT)
    np.testing.assert_allclose(splash.logprob_BT, xla.logprob_BT, atol=3e-5)


def test_what_a_cache_of_8_bits_holds():
    """Numbers within half a step of what was given; attention to them is attention to these."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 1, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 5, 2, 8)).astype(np.float32)
    k[0, 1, 1] = 0  # a head whose scale is 0
    attend = np.array([[True] * 5, [True, False, True, True, False]])
    exact, cache = (attention.to_cache(k, v, int8=int8) for int8 in (False, True))
    assert [x.dtype.name for x in cache] == ["int8", "int8", "float32", "float32"]
    k, v, *scales = cache
    held = [np.asarray(x, np.float32) * s for x, s in zip((k, v), scales, strict=True)]
    for got, want, scale in zip(held, exact, scales, strict=True):
        assert (np.abs(got - want) <= 0.5001 * np.asarray(scale)).all()
        assert not np.array_equal(got, want)
    np.testing.assert_allclose(
        attention.cached_attention(q, cache, attend),
        attention.cached_attention(q, held, attend),
        atol=1e-6,
    )


def train_step(cfg, mesh, rows: int, columns: int):
    """A traced update of supervised fine-tuning, of two micro-batches."""
    model, optimizer = heads.CausalLM(cfg), optim.adamw(optax.constant_schedule(1e-3))
    state = optim.abstract_state(heads.abstract_params(model, mesh), optimizer, mesh)
    shape = (2, rows, columns)
    batch = {"tokens_BS": jax.ShapeDtypeStruct(shape, jnp.int32)}
    batch |= {name: jax.ShapeDtypeStruct(shape, bool) for name in ("mask_BS", "response_BT")}
    batch["columns_BT"] = batch["tokens_BS"]
    batch["weight_B"] = jax.ShapeDtypeStruct(shape[:2], jnp.float32)
    step = functools.partial(supervised.train_step, optimizer=optimizer, **sft.objective(model))
    return jax.jit(step).trace(state, batch)


@pytest.mark.parametrize(
    ("shape", "local", "remat"),
    [("1,1,1", "8x4", True), ("2,2,2", "2x2", True), ("2,2,2", "2x2", False)],
)
@pytest.mark.parametrize(("kernel", "platform"), [("cudnn", "cuda"), ("splash", "tpu")])
def test_a_train_step_for_accelerators_has_flash_kernels_and_no_scores(
    cudnn_version, kernel, platform, shape, local, remat
):
    """Forward, with remat once more, and backward; each of a device's rows and heads."""
    cfg = dataclasses.replace(CFG, dtype="bfloat16", remat=remat, attention=kernel)
    mesh = sharding.make_mesh(shape, None if shape == "2,2,2" else jax.devices()[:1])
    with jax.set_mesh(mesh):
        traced = train_step(cfg, mesh, rows=8, columns=384)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    calls = re.findall(r"custom_call @(?:__cudnn\$fmha(\w+)|tpu_custom_call)\(.*", text)
    forward, backward = ["Softmax"] * (1 + remat), ["SoftmaxBackward"]
    assert calls == (forward + backward if kernel == "cudnn" else [""] * (3 + remat))
    assert f"tensor<{local}x384x64xbf16>" in text
    assert "384x384" not in text


@pytest.mark.parametrize(("kernel", "platform"), [("cudnn", "cuda"), ("splash", "tpu")])
def test_prompts_are_prefilled_by_flash_kernels(cudnn_version, kernel, platform):
    cfg = dataclasses.replace(CFG, dtype="bfloat16", attention=kernel)
    mesh = sharding.make_mesh("1,1,1", jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = heads.abstract_params(heads.CausalLM(cfg), mesh)
        weights = jax.eval_shape(
            functools.partial(decoding.decoding_weights, model=heads.CausalLM(cfg)), params
        )
        prompt, mask = (jax.ShapeDtypeStruct((8, 384), dtype) for dtype in (jnp.int32, bool))
        keys = jax.eval_shape(lambda: sampling.row_keys(jax.random.key(0), 8))
        options = {"model": heads.CausalLM(cfg), "ends": (1,), "max_new": 16}
        traced = sampling.generate.trace(weights, prompt, mask, keys, **options)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert re.search(r"custom_call @(__cudnn\$fmhaSoftmax|tpu_custom_call)\(", text)
    assert "384x384" not in text


@pytest.mark.parametrize(("kernel", "platform"), [("cudnn", "cuda"), ("splash", "tpu")])
def test_an_update_of_ppo_has_flash_kernels_and_no_scores(cudnn_version, kernel, platform):
    """Forward and backward, of the policy and of the critic."""
    cfg = dataclasses.replace(CFG, dtype="bfloat16", attention=kernel)
    critic = heads.TokenValueModel(cfg, "after")
    models = Architectures(heads.CausalLM(cfg), critic, None, None)
    config = plan_cases.ppo_config(**{"reward_function": "a:b", "data.max_new_tokens": 192})
    optimizer, _ = programs.make_optimizer(config)
    mesh, options = sharding.make_mesh("2,2,2"), {"ends": (1,), "prompt_widths": (192,)}
    update = programs.make(config, models, mesh, optimizer, **options)["update"]
    with jax.set_mesh(mesh):
        traced = jax.jit(update.function).trace(*update.arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    calls = re.findall(r"custom_call @(?:__cudnn\$fmha(\w+)|tpu_custom_call)\(", text)
    # Both models call one function with the splash kernels.
    assert calls == (["Softmax", "SoftmaxBackward"] * 2 if kernel == "cudnn" else [""] * 3)
    assert "384x384" not in text


def test_auto_is_the_flash_kernel_of_the_devices_where_heads_and_dtype_fit():
    devices = {
        "cpu": AbstractDevice("cpu", None, "cpu"),
        "h100": AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"),
        "mi300": AbstractDevice("AMD Instinct MI300X", None, "gpu"),
        "v5p": AbstractDevice("TPU v5p", 1, "tpu"),
    }
    for device, dtype, head_dim, want in (
        ("cpu", "bfloat16", 64, "xla"),
        ("mi300", "bfloat16", 64, "xla"),
        ("h100", "bfloat16", 64, "cudnn"),
        ("h100", "bfloat16", 128, "cudnn"),
        ("h100", "bfloat16", 256, "xla"),
        ("h100", "float32", 64, "xla"),
        ("v5p", "bfloat16", 128, "splash"),
        ("v5p", "float32", 64, "splash"),
        ("v5p", "bfloat16", 96, "xla"),
    ):
        mesh = AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=devices[device])
        with jax.sharding.use_abstract_mesh(mesh):
            assert attention.kernel("auto", dtype, head_dim) == want, (device, dtype, head_dim)
    assert attention.kernel("auto", "bfloat16", 64) == "xla"  # the tests' own backend


@pytest.mark.parametrize(
    ("capability", "want"), [("7.5", "xla"), ("8.0", "cudnn"), ("12.0", "cudnn")]
)
def test_gpus_before_ampere_have_xlas_attention(capability, want, monkeypatch):
    kind = "NVIDIA GeForce"
    gpu = SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert attention.kernel("auto", "bfloat16", 64) == want
    device = AbstractDevice(kind, None, "gpu")
    abstract = AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(abstract):
        assert attention.kernel("auto", "bfloat16", 64) == want
    refuse = pytest.raises(InputError, match="of Ampere or newer and the mesh is of NVIDIA Ge")
    mesh = SimpleNamespace(devices=np.array([gpu]))
    with refuse if want == "xla" else contextlib.nullcontext():
        attention.check_devices("cudnn", mesh)


def test_a_kernel_that_cannot_be_had_is_refused():
    for choice, dtype, head_dim, message in (
        ("cudnn", "float32", 64, "attention=cudnn: .* not in float32; set dtype=bfloat16"),
        ("cudnn", "bfloat16", 256, "attention=cudnn: .* not 256; set attention=xla, or"),
        ("splash", "float32", 16, "attention=splash: .* not 16; set attention=xla, or"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(CFG, attention=choice, dtype=dtype, head_dim=head_dim)
    mesh = sharding.make_mesh("1,1,1", jax.devices()[:1])
    for choice in ("auto", "xla"):
        attention.check_devices(choice, mesh)
    for choice in ("cudnn", "splash"):
        with pytest.raises(InputError, match=f"model.attention={choice}: .* set model.attention"):
            attention.check_devices(choice, mesh)
