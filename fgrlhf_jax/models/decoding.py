"""A model's weights in the form that they are decoded with."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fgrlhf_jax.models import heads, lora
from fgrlhf_jax.runtime import sharding


class DecodingWeights(NamedTuple):
    """A model's weights as ``sampling.generate`` reads them.

    Attributes:
      outer: those of the model without its layers.
      layers: those of each layer; cut out of the stack, for inside a loop every slice is a copy.
    """

    outer: dict
    layers: tuple[dict, ...]


@functools.partial(jax.jit, static_argnames="model")
def decoding_weights(params: dict, model: heads.CausalLM) -> DecodingWeights:
    """A copy of the parameters of ``model``, in the dtypes that it computes with.

    An adapter is merged: no token pays for its products.
    """
    layers = (layer_weights(params, number, model) for number in range(model.cfg.num_layers))
    return DecodingWeights(outer_weights(params, model), tuple(layers))


def outer_weights(params: dict, model: heads.CausalLM) -> dict:
    """The ``outer`` of :func:`decoding_weights`."""
    backbone = {name: part for name, part in params["backbone"].items() if name != "layers"}
    outer = {name: part for name, part in params.items() if name != "lora"}
    return _cast(outer | {"backbone": backbone}, model)


def layer_weights(params: dict, number: int | jax.Array, model: heads.CausalLM) -> dict:
    """One of the ``layers`` of :func:`decoding_weights`."""
    adapter = params.get("lora", {"backbone": {"layers": {}}})
    stacks = params["backbone"]["layers"], adapter["backbone"]["layers"]
    base, pairs = jax.tree.map(lambda x: x[number], stacks)
    return _cast(lora.merge_layer(base, pairs, model.cfg.lora_scale), model)


def _cast(part: dict, model: heads.CausalLM) -> dict:
    return jax.tree.map(lambda x, dtype: x.astype(dtype), part, heads.compute_dtypes(model, part))


def abstract_weights(params: dict, model: heads.CausalLM, mesh) -> DecodingWeights:
    """Shapes, dtypes and shardings of :func:`decoding_weights`: whole but for the tensor axis."""
    shapes = jax.eval_shape(functools.partial(decoding_weights, model=model), params)
    return sharding.abstract(shapes, mesh, split=("tensor",))


def make_placer(params: dict, model: heads.CausalLM, mesh) -> Callable[[dict], DecodingWeights]:
    """What makes :func:`decoding_weights`, laid out over a mesh, of parameters like these.

    It makes them a layer at a time: no two are merged side by side.
    """
    layout = jax.tree.map(lambda x: x.sharding, abstract_weights(params, model, mesh))
    outer, layer = (
        jax.jit(functools.partial(convert, model=model), out_shardings=shardings)
        for convert, shardings in ((outer_weights, layout.outer), (layer_weights, layout.layers[0]))
    )

    def place(params: dict) -> DecodingWeights:
        with jax.set_mesh(mesh):
            layers = (layer(params, np.int32(number)) for number in range(model.cfg.num_layers))
            return DecodingWeights(outer(params), tuple(layers))

    return place
