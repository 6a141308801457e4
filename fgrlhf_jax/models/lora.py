"""Low-rank adapters (LoRA; Hu et al. 2022, arXiv:2106.09685) on the linear layers of one backbone.

An adapter is a tree like the backbone's parameters, with ``lora_a`` [L, in, rank] and ``lora_b``
[L, rank, out] instead of a kernel [L, in, out]. It is stored beside the other parameters of a
model, under "lora":

    {"backbone": …, "lm_head": …}                  the base, and a reference without an adapter
    {"backbone": …, "lm_head": …, "lora": …}       a policy: the same arrays, and an adapter
    {"backbone": …, "head": …, "lora": …}          a reward model or critic on the same backbone

The trained parameters are a separate tree, the only one that the optimizer sees; :func:`join`
combines both trees to the parameters of the model. The table U of a reward model's head is the
language model's, and frozen like the base.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import quantize
from fgrlhf_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Lora:
    """Settings of an adapter; fields of ``config.lora``.

    Attributes:
      rank: rank of every product A B.
      targets: regular expression over the paths of linear layers, such as ``attention/q`` and
        ``mlp/down``.
      rslora: divides by sqrt(rank) instead of rank (Kalajdzievski 2023, arXiv:2312.03732).
      base_dtype: storage of the frozen kernels, see :mod:`fgrlhf_jax.models.quantize`.
    """

    rank: int
    alpha: float = 32.0
    targets: str = "."
    rslora: bool = False
    base_dtype: str = "float32"

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def from_config(config: ConfigDict) -> Lora | None:
    """The adapter settings of a config; None if all parameters are trained."""
    fields = {field.name: config.lora[field.name] for field in dataclasses.fields(Lora)}
    return Lora(**fields) if config.lora.rank else None


def variables(params: dict) -> dict:
    """A model's parameters as the variable collections for ``module.apply``."""
    params = dict(params)
    adapter = params.pop("lora", None)
    return {"params": params} if adapter is None else {"params": params, "lora": adapter}


def split(params: dict, lora: Lora | None, mesh: Mesh) -> tuple[dict, dict]:
    """Splits a model's abstract parameters into trained and frozen ones.

    Without ``lora`` all are trained; otherwise :func:`trained` are, and the base is frozen. Raises
    InputError as :func:`trained`, and for a base that cannot be quantized.
    """
    if lora is None:
        return params, {}
    base = {part: tree for part, tree in params.items() if part != "head"}
    if "unembed" in params.get("head", {}):
        base["head"] = {"unembed": params["head"]["unembed"]}
    store = functools.partial(quantize.quantize_params, kind=lora.base_dtype)
    return trained(params, lora, mesh), sharding.abstract(jax.eval_shape(store, base), mesh)


def trained(params: dict, lora: Lora | None, mesh: Mesh) -> dict:
    """The trained part of a model's abstract parameters; all of them without ``lora``.

    {"lora"} and, for a reward model, its "head" without the table U. Raises InputError as
    :func:`abstract_adapter`.
    """
    if lora is None:
        return params
    return without_base(params | {"lora": abstract_adapter(params, lora, mesh)})


def without_base(params: dict) -> dict:
    """The trained parameters among all parameters of a model with an adapter."""
    head = {name: x for name, x in params.get("head", {}).items() if name != "unembed"}
    return {"lora": params["lora"]} | ({"head": head} if head else {})


def join(base: dict, trained: dict) -> dict:
    """All parameters of a model, from the two parts of :func:`split`."""
    head = base.get("head", {}) | trained.get("head", {})
    return base | trained | ({"head": head} if head else {})


def abstract_adapter(params: dict, lora: Lora, mesh: Mesh) -> dict:
    """Shapes, dtypes and shardings of an adapter for a model with these abstract parameters.

    Raises InputError if ``lora.targets`` matches no linear layer, or the rank is too high.
    """
    layers = {
        f"{part}/{layer}": parameters["kernel"].shape  # [L, in, out]
        for part, group in params["backbone"]["layers"].items()
        for layer, parameters in group.items()
        if isinstance(parameters, dict) and "kernel" in parameters
    }
    names = [name for name in layers if re.search(lora.targets, name)]
    if not names:
        raise InputError(
            f"lora.targets={lora.targets!r} finds no linear layer; there are {', '.join(layers)}"
        )
    max_rank = max(min(layers[name][1:]) for name in names)
    if lora.rank > max_rank:
        raise InputError(
            f"lora.rank={lora.rank}: the rank of these layers is at most {max_rank}; lower it, or "
            "train all weights with --config.lora.rank=0"
        )
    adapter: dict = {}
    for name in names:
        count, width, features = layers[name]
        part, layer = name.split("/")
        adapter.setdefault(part, {})[layer] = {
            "lora_a": jax.ShapeDtypeStruct((count, width, lora.rank), jnp.float32),
            "lora_b": jax.ShapeDtypeStruct((count, lora.rank, features), jnp.float32),
        }
    return sharding.abstract({"backbone": {"layers": adapter}}, mesh)


def init_adapter(key: jax.Array, abstract: dict) -> dict:
    """An adapter that changes nothing yet: A normal with variance 1 / (3 in), B zero.

    The variance equals that of Hugging Face PEFT's uniform A, so that PEFT's learning rates apply.
    """

    def init(key):
        def leaf(path, x):
            name = sharding.path_name(path)
            if name.endswith("lora_b"):
                return jnp.zeros(x.shape, x.dtype)
            number = [sharding.path_name(p) for p, _ in leaves].index(name)
            normal = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
            return normal * (3 * x.shape[1]) ** -0.5

        leaves = jax.tree.leaves_with_path(abstract)
        return jax.tree.map_with_path(leaf, abstract)

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)


def merge_layer(layer: dict, adapter: dict, scale: float) -> dict:
    """Merges an adapter into the parameters of one layer, or of a stack of layers.

    ``adapter`` is {"attention": {"q": {"lora_a", "lora_b"}, …}, "mlp": …}, or a part of it.
    """
    merged = {part: dict(group) for part, group in quantize.dequantize_params(layer).items()}
    for part, group in adapter.items():
        for name, pair in group.items():
            kernel = merge_kernel(merged[part][name]["kernel"], pair, scale)
            merged[part][name] = merged[part][name] | {"kernel": kernel}
    return merged


def merge_kernel(
    kernel: jax.Array | quantize.Quantized, pair: dict | None, scale: float
) -> jax.Array:
    """W + scale A B of one layer or a stack of layers, in float32; W without a ``pair``."""
    if quantize.is_quantized(kernel):
        kernel = quantize.dequantize(kernel, "float32")
    if pair is None:
        return kernel
    pair = pair["lora_a"], pair["lora_b"]
    product = jnp.einsum("...IR,...RO->...IO", *pair, precision="highest")
    return kernel.astype(jnp.float32) + scale * product
