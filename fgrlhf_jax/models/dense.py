"""The linear layer of every model: a product with a kernel, and with an adapter where it has one.

Kernels are the variables "params" of a module. Adapters are a collection of their own, "lora": with
it a layer computes x W + scale (x A) B (Hu et al. 2022, arXiv:2106.09685), without it x W, so that
one module is a model and all adapters of it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name


class Dense(nn.Module):
    """x W + b over the last axis; with an adapter x W + b + lora_scale (x A) B.

    Attributes:
      features: width of the output.
      dtype: of the computation; parameters are float32, see :func:`kernel_of` for others.
      float32_gradients: the gradients of a float32 kernel are not rounded to ``dtype``.
    """

    features: int
    use_bias: bool
    dtype: str
    kernel_init: nn.initializers.Initializer
    precision: str | None = None
    float32_gradients: bool = False
    lora_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")
        else:
            kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = self.product(x, kernel_of(kernel, self.dtype))
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
            return _product_and_float32_gradient(x, kernel)
        return flat_product(x, kernel.astype(self.dtype), 0, precision=self.precision)


def kernel_of(stored, dtype: str) -> jax.Array:
    """The array of a stored kernel: itself, in its own dtype."""
    return stored


def flat_product(x: jax.Array, kernel: jax.Array, contracted: int, **options) -> jax.Array:
    """The product of x's last axis and that axis of a matrix, x's other axes flattened to one.

    With more than one the CPU's compiler transposes a copy of every output gradient to multiply it
    by the input, which takes longer than the product.

    Args:
      **options: of ``lax.dot_general``.
    """
    flat = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(flat, kernel, (((1,), (contracted,)), ((), ())), **options)
    return product.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product_and_float32_gradient(x, kernel) -> jax.Array:
    """The product in the dtype of x, to which the gradient of a float32 kernel is not rounded."""
    return flat_product(x, kernel.astype(x.dtype), 0)


def _product_forward(x, kernel):
    return _product_and_float32_gradient(x, kernel), (x, kernel)


def _product_backward(kept, dy):
    x, kernel = kept
    dx = flat_product(dy, kernel.astype(x.dtype), 1)
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    d_kernel = jnp.einsum("BI,BO->IO", *rows, preferred_element_type=jnp.float32)
    return dx, d_kernel.astype(kernel.dtype)


_product_and_float32_gradient.defvjp(_product_forward, _product_backward)
