"""A model's weights in the form used for decoding."""

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
      outer: all weights outside the layers.
      layers: the weights of each layer, cut out of the stack, because slices inside a loop copy.
    """

    outer: dict
    layers: tuple[dict, ...]


@functools.partial(jax.jit, static_argnames="model")
def decoding_weights(params: dict, model: heads.CausalLM) -> DecodingWeights:
    """A copy of the parameters of ``model`` in its compute dtypes.

    An adapter is merged, so that decoding does not compute its products for every token.
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
    """Shapes, dtypes and shardings of :func:`decoding_weights`: split over the tensor axis only."""
    shapes = jax.eval_shape(functools.partial(decoding_weights, model=model), params)
    return sharding.abstract(shapes, mesh, split_axes=("tensor",))


def make_placer(params: dict, model: heads.CausalLM, mesh) -> Callable[[dict], DecodingWeights]:
    """A function that makes :func:`decoding_weights`, sharded over a mesh, from such parameters.

    It works layer by layer, so that only one layer is merged at a time.
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
