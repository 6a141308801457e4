"""The linear layer of every model: a product with a kernel, plus that of an adapter, if any.

Kernels are in the variable collection "params" of a module, adapters in the collection "lora". With
it a layer computes x W + scale (x A) B (Hu et al. 2022, arXiv:2106.09685), without it x W, so that
one module serves a model and all its adapters.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from fgrlhf_jax.models import quantize
from fgrlhf_jax.runtime import sharding


class Dense(nn.Module):
    """x W + b over the last axis; with an adapter x W + b + lora_scale (x A) B.

    Attributes:
      features: width of the output.
      dtype: of the computation; the kernel may be stored in another dtype, or quantized.
      float32_gradients: whether gradients of a float32 kernel are kept in float32, not ``dtype``.
    """

    features: int
    use_bias: bool
    dtype: str
    kernel_init: nn.initializers.Initializer
    float32_gradients: bool = False
    lora_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")
        else:
            kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if quantize.is_quantized(kernel):
            stored = sharding.gather(kernel, "/".join((*self.path, "kernel")))
            kernel = quantize.dequantize(stored, self.dtype)
        y = self.product(x, kernel)
        if self.has_variable("lora", "lora_a"):
            a_IR, b_RO = (self.get_variable("lora", name) for name in ("lora_a", "lora_b"))
            y += self.lora_scale * self.product(self.product(x, a_IR), b_RO)
            y = checkpoint_name(y, "adapted")  # one array to keep instead of two products
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y += bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.float32_gradients:
            return _product_and_float32_gradient(x, kernel, 0, self.dtype)
        return flat_product(x, kernel.astype(self.dtype), 0)


def flat_product(x: jax.Array, kernel: jax.Array, contracted: int, **options) -> jax.Array:
    """Contracts x's last axis with axis ``contracted`` of a matrix, x's other axes flattened.

    With several axes, the CPU compiler's backward pass transposes a copy of every output gradient,
    which takes longer than the product. ``options`` are those of ``lax.dot_general``.
    """
    flat = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(flat, kernel, (((1,), (contracted,)), ((), ())), **options)
    return product.reshape(*x.shape[:-1], -1)


def logits_product(x: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
    """float32 logits: operands in the dtype of x; sums and the kernel's gradient in float32.

    float32 operands are not rounded to TF32 or bfloat16, as devices would do by default.
    """
    if x.dtype == jnp.float32:
        return flat_product(x, kernel.astype(x.dtype), contracted, precision="highest")
    return _product_and_float32_gradient(x, kernel, contracted, "float32")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_and_float32_gradient(x, kernel, contracted: int, dtype: str) -> jax.Array:
    """The product of x with a kernel rounded to x's dtype; the kernel's gradient is not rounded.

    ``dtype`` is that of the result; the result's gradient is rounded to x's dtype.
    """
    return flat_product(x, kernel.astype(x.dtype), contracted, preferred_element_type=dtype)


def _product_forward(x, kernel, contracted, dtype):
    return _product_and_float32_gradient(x, kernel, contracted, dtype), (x, kernel)


def _product_backward(contracted, _, residuals, dy):
    x, kernel = residuals
    dy = dy.astype(x.dtype)
    dx = flat_product(dy, kernel.astype(x.dtype), 1 - contracted)
    rows = [array.reshape(-1, array.shape[-1]) for array in (x, dy)]
    left, right = rows[:: -1 if contracted else 1]
    d_kernel = jnp.einsum("BI,BO->IO", left, right, preferred_element_type=jnp.float32)
    return dx, d_kernel.astype(kernel.dtype)


_product_and_float32_gradient.defvjp(_product_forward, _product_backward)
