"""Low-rank adapters (LoRA; Hu et al. 2022, arXiv:2106.09685) on the linear layers of one backbone.

An adapter is a tree like the backbone's parameters, with ``lora_a`` [L, in, rank] and ``lora_b``
[L, rank, out] in the place of a kernel [L, in, out]. It stands beside the other parameters of a
model, under "lora":

    {"backbone": …, "lm_head": …}                  the base, and a reference without an adapter
    {"backbone": …, "lm_head": …, "lora": …}       a policy: the same arrays, and an adapter
    {"backbone": …, "head": …, "lora": …}          a reward model or critic on the same backbone

What is trained is a tree of its own, of which the optimizer knows nothing else: both together, by
:func:`join`, are the parameters of the model. The table U of a reward model's head is the language
model's, and frozen like the base.
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
    """What adapters there are; the fields of ``config.lora`` that an adapter is made with.

    Attributes:
      rank: of every product A B.
      targets: regular expression over the paths of linear layers, such as ``attention/q`` and
        ``mlp/down``.
      rslora: divides by sqrt(rank) and not by rank (Kalajdzievski 2023, arXiv:2312.03732).
      base_dtype: of the frozen kernels, see :mod:`fgrlhf_jax.models.quantize`.
    """

    rank: int
    alpha: float = 32.0
    targets: str = "."
    rslora: bool = False
    base_dtype: str = "float32"

    @property
    def scale(self) -> float:
        """What multiplies A B."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def from_config(config: ConfigDict) -> Lora | None:
    """The adapters of a config; None where all parameters are trained."""
    fields = {field.name: config.lora[field.name] for field in dataclasses.fields(Lora)}
    return Lora(**fields) if config.lora.rank else None


def variables(params: dict) -> dict:
    """The collections that ``module.apply`` takes, of a model's parameters."""
    params = dict(params)
    adapter = params.pop("lora", None)
    return {"params": params} if adapter is None else {"params": params, "lora": adapter}


def split(params: dict, lora: Lora | None, mesh: Mesh) -> tuple[dict, dict]:
    """What is trained and what is only read, of a model's abstract parameters.

    Returns:
      All and nothing, without ``lora``; or else :func:`trained` and the base. Raises InputError as
      that does, and for a base that cannot be quantized.
    """
    if lora is None:
        return params, {}
    base = {part: tree for part, tree in params.items() if part != "head"}
    if "unembed" in params.get("head", {}):
        base["head"] = {"unembed": params["head"]["unembed"]}
    store = functools.partial(quantize.quantize_params, kind=lora.base_dtype)
    return trained(params, lora, mesh), sharding.abstract(jax.eval_shape(store, base), mesh)


def trained(params: dict, lora: Lora | None, mesh: Mesh) -> dict:
    """What is trained of a model's abstract parameters: {"lora"} with, of a reward model, its head.

    Of the head all but its table U. Without ``lora`` all. Raises InputError as
    :func:`abstract_adapter`.
    """
    if lora is None:
        return params
    return without_base(params | {"lora": abstract_adapter(params, lora, mesh)})


def without_base(params: dict) -> dict:
    """What is trained, of all parameters of a model that has an adapter."""
    head = {name: x for name, x in params.get("head", {}).items() if name != "unembed"}
    return {"lora": params["lora"]} | ({"head": head} if head else {})


def join(base: dict, trained: dict) -> dict:
    """All parameters of a model, of the two parts that :func:`split` makes."""
    head = base.get("head", {}) | trained.get("head", {})
    return base | trained | ({"head": head} if head else {})


def abstract_adapter(params: dict, lora: Lora, mesh: Mesh) -> dict:
    """Shapes, dtypes and shardings of an adapter for a model of these abstract parameters.

    Raises InputError where ``lora.targets`` finds no linear layer, or none has so high a rank.
    """
    layers = _linear_layers(params["backbone"]["layers"])
    names = [name for name in layers if re.search(lora.targets, name)]
    if not names:
        raise InputError(
            f"lora.targets={lora.targets!r} finds no linear layer; there are {', '.join(layers)}"
        )
    highest = max(min(layers[name][1:]) for name in names)
    if lora.rank > highest:
        raise InputError(
            f"lora.rank={lora.rank}: the rank of these layers is at most {highest}; lower it, or "
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


def _linear_layers(layers: dict) -> dict[str, tuple[int, int, int]]:
    """The shapes [L, in, out] of kernels by the names of their layers, such as ``attention/q``."""
    return {
        f"{part}/{layer}": parameters["kernel"].shape
        for part, group in layers.items()
        for layer, parameters in group.items()
        if isinstance(parameters, dict) and "kernel" in parameters
    }


def init_adapter(key: jax.Array, abstract: dict) -> dict:
    """An adapter that changes nothing yet: A normal with variance 1 / (3 in), B zero.

    The variance is that of Hugging Face PEFT's uniform A, so that its learning rates are right.
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
    """The parameters of one layer, or of a stack of them, with its part of an adapter in it.

    The ``adapter`` is {"attention": {"q": {"lora_a", "lora_b"}, …}, "mlp": …}, or some of it.
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
    """W + scale A B of one layer, or of a stack of them, in float32; without a ``pair`` W."""
    if quantize.is_quantized(kernel):
        kernel = quantize.dequantize(kernel, "float32")
    if pair is None:
        return kernel
    pair = pair["lora_a"], pair["lora_b"]
    product = jnp.einsum("...IR,...RO->...IO", *pair, precision="highest")
    return kernel.astype(jnp.float32) + scale * product
