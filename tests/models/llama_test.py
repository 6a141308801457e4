"""The model against transformers' torch LLaMA, module by module, and by its own properties."""

import dataclasses
import functools
import itertools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_cases import abstract
from tiny_cases import by_path, laid_out, parameters

from fgrlhf_jax.models import attention, dense, heads, hf_load, llama
from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling
from fgrlhf_jax.models.sizes import SIZES

BASE = LlamaConfig(97, 48, 80, 3, 4, 4, 12, norm_eps=1e-6)
FAMILIES = {
    "llama1": BASE,
    "llama2_gqa": dataclasses.replace(BASE, num_kv_heads=2, norm_eps=1e-5),
    "llama3": dataclasses.replace(
        BASE,
        num_kv_heads=2,
        rope_theta=5e5,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, original_max_position=24),
    ),
    "tinyllama": dataclasses.replace(BASE, num_heads=8, num_kv_heads=1, head_dim=6),
    "smollm2": dataclasses.replace(
        BASE, num_heads=3, num_kv_heads=1, head_dim=16, rope_theta=1e5, tie_embeddings=True
    ),
    "biases": dataclasses.replace(BASE, attention_bias=True, mlp_bias=True),
    "narrow_heads": dataclasses.replace(BASE, head_dim=8),
}
TOLERANCE = 1e-4  # of the largest number


def relative(ours, theirs) -> float:
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@functools.partial(jax.jit, static_argnums=0)  # one compilation a module and shape
def run(module, params, *args):
    return module.apply({"params": params}, *args)


def apply(module, params, tokens, mask):
    args = (jnp.asarray(tokens), *heads.positions_and_mask(jnp.asarray(mask)))
    return np.asarray(run(module, params, *args))


@dataclasses.dataclass
class Twin:
    """The same random weights in torch and, read from the folder torch wrote, in JAX."""

    cfg: LlamaConfig
    theirs: object
    params: dict

    def layer(self, number):
        return jax.tree.map(lambda x: x[number], self.params["backbone"]["layers"])


@pytest.fixture(scope="module", params=FAMILIES)
def twin(request, tmp_path_factory):
    import torch
    import transformers

    cfg = FAMILIES[request.param]
    rope = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if cfg.rope_scaling:
        scaling = dataclasses.asdict(cfg.rope_scaling)
        scaling["original_max_position_embeddings"] = scaling.pop("original_max_position")
        rope |= scaling | {"rope_type": "llama3"}
    names = ("vocab_size", "hidden_size", "intermediate_size", "head_dim")
    fields = {name: getattr(cfg, name) for name in (*names, "attention_bias", "mlp_bias")}
    fields |= {"num_hidden_layers": cfg.num_layers, "num_attention_heads": cfg.num_heads}
    fields |= {"num_key_value_heads": cfg.num_kv_heads, "rope_parameters": rope}
    fields |= {"rms_norm_eps": cfg.norm_eps, "max_position_embeddings": cfg.max_position}
    fields |= {"tie_word_embeddings": cfg.tie_embeddings, "attn_implementation": "eager"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.15)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    assert hf_load.read_config(folder) == cfg
    return Twin(cfg, theirs, hf_load.load_params(folder, abstract(heads.CausalLM(cfg))))


@pytest.fixture
def inputs(twin):
    """Hidden states, positions that do not start at 0, and the causal mask, for both."""
    import torch

    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((2, 31, twin.cfg.hidden_size)).astype(np.float32)
    positions = np.tile(np.arange(5, 36, dtype=np.int32)[None], (2, 1))
    attend = np.tril(np.ones((2, 31, 31), bool))
    bias = torch.where(torch.from_numpy(attend)[:, None], 0.0, -torch.inf)
    rope = twin.theirs.model.rotary_emb(torch.from_numpy(hidden), torch.from_numpy(positions))
    theirs = {"position_embeddings": rope, "attention_mask": bias}
    return hidden, (llama.rotary_tables(twin.cfg, jnp.asarray(positions)), attend), theirs


@pytest.mark.parity
def test_embedding_norms_attention_mlp_and_block(twin, inputs):
    import torch

    hidden, ours, theirs = inputs
    hidden_theirs, model, cfg = torch.from_numpy(hidden), twin.theirs.model, twin.cfg
    tokens = np.arange(cfg.vocab_size, dtype=np.int32)[None]
    embedded = jnp.asarray(twin.params["backbone"]["embed"]["embedding"])[tokens]
    assert relative(embedded, model.embed_tokens(torch.from_numpy(tokens))) == 0
    for params, norm in (
        (twin.layer(1)["attention_norm"], model.layers[1].input_layernorm),
        (twin.layer(2)["mlp_norm"], model.layers[2].post_attention_layernorm),
        (twin.params["backbone"]["norm"], model.norm),
    ):
        got = run(llama.rms_norm(cfg), params, hidden)
        assert relative(got, norm(hidden_theirs)) < TOLERANCE
    got, _ = run(llama.Attention(cfg), twin.layer(1)["attention"], hidden, *ours)
    want, _ = model.layers[1].self_attn(hidden_theirs, **theirs)
    assert relative(got, want) < TOLERANCE
    got = run(llama.MLP(cfg), twin.layer(2)["mlp"], hidden)
    assert relative(got, model.layers[2].mlp(hidden_theirs)) < TOLERANCE
    got, _ = run(llama.Block(cfg), twin.layer(0), hidden, *ours)
    assert relative(got, model.layers[0](hidden_theirs, **theirs)) < TOLERANCE


@pytest.mark.parity
def test_rotary(twin, inputs):
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    _, ((cos, sin), _), theirs = inputs
    half = twin.cfg.head_dim // 2
    for ours, table in zip((cos, sin), theirs["position_embeddings"], strict=True):
        assert relative(ours[:, :, 0], table[..., :half]) < TOLERANCE
    x = np.random.default_rng(2).standard_normal((2, 31, 3, 2 * half)).astype(np.float32)
    x_theirs = torch.from_numpy(x).transpose(1, 2)
    want, _ = apply_rotary_pos_emb(x_theirs, x_theirs, *theirs["position_embeddings"])
    assert relative(llama.rotate(jnp.asarray(x), (cos, sin)), want.transpose(1, 2)) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_padded_rows_are_torchs_of_the_rows_alone(twin, side):
    import torch

    rng = np.random.default_rng(3)
    rows = [rng.integers(0, twin.cfg.vocab_size, n) for n in (40, 7, 1)]
    tokens, mask = laid_out(rows, side, fill=2, width=43)
    ours = apply(heads.CausalLM(twin.cfg), twin.params, tokens, mask)
    assert ours.dtype == np.float32
    for i, row in enumerate(rows):
        with torch.no_grad():
            theirs = twin.theirs(torch.from_numpy(row)[None]).logits[0]
        assert relative(ours[i][mask[i]], theirs) < TOLERANCE


def test_positions_and_mask_are_the_drawing():
    mask = jnp.array([[0, 1, 1], [1, 1, 0]], bool)
    positions, attend = heads.positions_and_mask(mask)
    np.testing.assert_array_equal(positions, [[0, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(attend, mask)
    assert positions.dtype == jnp.int32
    want = [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    np.testing.assert_array_equal(attention.dense_mask(mask), np.array(want, bool))


def test_an_explicit_mask_is_attended_as_it_is():
    params = parameters(MODULES["lm"])
    mask = jnp.array([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    tokens, (positions, attend) = jnp.ones((2, 5), jnp.int32), heads.positions_and_mask(mask)
    want = run(MODULES["lm"], params, tokens, positions, attend)
    explicit = attention.dense_mask(mask)
    np.testing.assert_array_equal(run(MODULES["lm"], params, tokens, positions, explicit), want)
    blind = explicit & jnp.eye(5, dtype=bool)[None]
    got = run(MODULES["lm"], params, tokens, positions, blind)
    alone = run(MODULES["lm"], params, tokens.T[:1, :1], positions[:1, :1], mask[1:, :1])
    np.testing.assert_allclose(got[0, 1], alone[0, 0], atol=2e-5)


MODULES = {
    "lm": heads.CausalLM(BASE),
    "after": heads.TokenValueModel(BASE),
    "state_action": heads.TokenValueModel(BASE, "state_action"),
}


def loss_and_gradient(cfg, params, tokens, mask):
    args = (jnp.asarray(tokens), *heads.positions_and_mask(jnp.asarray(mask)))

    def loss(params):
        logits = heads.CausalLM(cfg).apply({"params": params}, *args)
        return jnp.mean(jnp.square(logits)), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()


def test_scan_unroll_and_remat_are_the_same_function():
    cfg = dataclasses.replace(BASE, num_kv_heads=2)
    params = parameters(heads.CausalLM(cfg))
    tokens = np.random.default_rng(6).integers(0, cfg.vocab_size, (2, 64))
    mask = np.ones_like(tokens, bool)
    want, temporaries = None, {}
    for scan, remat in itertools.product((True, False), (False, True)):
        how = dataclasses.replace(cfg, scan_layers=scan, remat=remat)
        chex.assert_trees_all_equal_shapes(parameters(heads.CausalLM(how)), params)
        compiled = loss_and_gradient(how, params, tokens, mask)
        (_, logits), gradient = compiled(params)
        loops = compiled.as_text().count(" while(")  # a scatter of the embedding may be one
        assert (loops > 1) == scan
        temporaries[scan, remat] = compiled.memory_analysis().temp_size_in_bytes
        want = want or (logits, gradient)
        np.testing.assert_array_equal(logits, want[0])
        chex.assert_trees_all_close(gradient, want[1], rtol=1e-4, atol=1e-7)
    assert temporaries[True, True] < 0.8 * temporaries[True, False]


def test_weight_gradients_need_no_transposed_copies():
    module = llama.MLP(BASE)
    hidden = jax.ShapeDtypeStruct((2, 16, BASE.hidden_size), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), hidden)

    def loss(params, hidden_BSD):
        return jnp.sum(jnp.square(module.apply(params, hidden_BSD)))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, hidden).compile()
    assert " dot(" in compiled.as_text()
    assert " transpose(" not in compiled.as_text()


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    params = parameters(heads.CausalLM(BASE))
    tokens = np.random.default_rng(7).integers(0, BASE.vocab_size, (2, 12))
    mask = np.ones_like(tokens, bool)
    full = apply(heads.CausalLM(BASE), params, tokens, mask)
    half_model = heads.CausalLM(dataclasses.replace(BASE, dtype="bfloat16"))
    half = apply(half_model, params, tokens, mask)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(abstract(half_model))} == {"float32"}
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() / np.abs(full).max() < 0.05


def test_gradients_of_matrices_are_not_rounded_where_they_should_not():
    """Nor are they other than in float32 but for the rounding of what they are made of."""
    tokens = jnp.asarray(np.random.default_rng(7).integers(0, BASE.vocab_size, (2, 12)))

    def gradients(**fields) -> dict:
        model = heads.CausalLM(dataclasses.replace(BASE, attention_bias=True, **fields))
        args = tokens, *heads.positions_and_mask(tokens >= 0)

        def loss(params):
            return jnp.mean(jax.nn.log_softmax(model.apply({"params": params}, *args))[..., 5])

        return by_path(jax.jit(jax.grad(loss))(params))

    params = parameters(heads.CausalLM(dataclasses.replace(BASE, attention_bias=True)))
    exact = gradients()
    half, whole, same = (
        gradients(dtype=dtype, float32_gradients=option)
        for dtype, option in (("bfloat16", False), ("bfloat16", True), ("float32", True))
    )
    for name, gradient in exact.items():
        np.testing.assert_allclose(same[name], gradient, rtol=1e-5, atol=1e-7)
        assert relative_error(whole[name], gradient) < 0.1, name
        if re.search("embedding|(q|k|v|o|gate|up|down)/kernel", name):
            assert is_rounded(half[name])
            assert not is_rounded(whole[name])


@pytest.mark.parametrize("contracted", [0, 1])
def test_logits_and_gradients_of_a_bfloat16_head_are_float32_sums(contracted):
    """Of products of rounded numbers: of states and kernel, and of the logits' gradient."""
    rng = np.random.default_rng(contracted)
    x, dy = (rng.standard_normal((2, 5, n)).astype(np.float32) for n in (16, 33))
    kernel = rng.standard_normal((33, 16) if contracted else (16, 33)).astype(np.float32)
    product = lambda x, kernel: dense.logits_product(x, kernel, contracted)  # noqa: E731
    logits, gradients = jax.vjp(product, jnp.asarray(x, jnp.bfloat16), kernel)
    dx, d_kernel = gradients(dy)
    x, dy, kernel = (np.float64(jnp.asarray(array, jnp.bfloat16)) for array in (x, dy, kernel))
    kernel = kernel.T if contracted else kernel
    want = np.einsum("BSD,BSV->DV", x, dy)
    np.testing.assert_allclose(logits, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(d_kernel, want.T if contracted else want, atol=1e-5)
    np.testing.assert_allclose(np.float64(dx), dy @ kernel.T, rtol=2**-8)
    assert not is_rounded(logits)
    assert not is_rounded(d_kernel)


def relative_error(x, exact) -> float:
    return float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact))


def is_rounded(x) -> bool:
    return bool((x.astype(jnp.bfloat16) == x).all())


@pytest.mark.parametrize("name", [*MODULES, "tied"])
def test_the_computation_rounds_the_parameters_that_the_table_says(name):
    """In bfloat16; the others, rounded, change what comes out."""
    cfg = dataclasses.replace(BASE, dtype="bfloat16", tie_embeddings=name == "tied")
    model = MODULES.get(name, heads.CausalLM(cfg)).clone(cfg=cfg)
    params = parameters(model)
    tokens = np.random.default_rng(7).integers(0, BASE.vocab_size, (2, 12))
    outputs = functools.partial(apply, model, tokens=tokens, mask=tokens >= 0)
    want, dtypes = outputs(params), heads.compute_dtypes(model, params)
    np.testing.assert_array_equal(outputs(jax.tree.map(jnp.asarray, params, dtypes)), want)
    leaves, tree = jax.tree.flatten(params)
    for number, (path, dtype) in enumerate(by_path(dtypes).items()):
        rounded = leaves[number].astype(jnp.bfloat16).astype(np.float32)
        changed = [*leaves[:number], rounded, *leaves[number + 1 :]]
        is_same = np.array_equal(outputs(tree.unflatten(changed)), want)
        assert is_same == (dtype == jnp.bfloat16), path


def test_sizes_have_the_published_number_of_parameters():
    for sizes, count in (
        ("smollm2_135m", 134_515_008),
        ("llama_7b llama2_7b", 6_738_415_616),
        ("llama3_8b", 8_030_261_248),
    ):
        for size in sizes.split():
            leaves = jax.tree.leaves(abstract(heads.CausalLM(SIZES[size])))
            assert sum(math.prod(leaf.shape) for leaf in leaves) == count, size


@pytest.mark.parametrize(
    "wrong", [{"num_kv_heads": 3}, {"head_dim": 7}, {"attention": "flash"}], ids=str
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(BASE, **wrong)
    with pytest.raises(ValueError, match="sideways"):
        parameters(heads.TokenValueModel(BASE, "sideways"))
