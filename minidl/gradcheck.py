"""Is a gradient right? Compare it with finite differences, in a direction drawn at random.

With a cotangent of ones many wrong gradients look right: the true gradient of sum(batch_norm(x)) is
0, so 0 times anything passes. Hence u and v are random: u . f(x + h v) changes by h v . (J^T u).
"""

import numpy as np

from .tensor import Tensor, grad, sum


def gradcheck(function, inputs, order=1, step=1e-5, tolerance=1e-6, draws=3, seed=0):
    """True if the gradients of function(*inputs) match central differences, else AssertionError.

    >>> gradcheck(lambda x: x ** 2, np.array([1.0, 2.0]))
    True

    function: takes Tensors, returns one Tensor. inputs: an array or Tensor, or a list of them; they
    are checked in float64. order=2 also checks the gradient's own gradient, as
    `grad(create_graph=True)` returns it. step: the h of (f(x + h v) - f(x - h v)) / 2h. tolerance:
    the largest relative error, where sizes below 1e-3 count as 1e-3. draws: how many random
    directions per input.
    """
    rng = np.random.default_rng(seed)
    if isinstance(inputs, (Tensor, np.ndarray)):
        inputs = [inputs]
    arrays = [np.array(x.data if isinstance(x, Tensor) else x, np.float64) for x in inputs]
    for _ in range(draws):
        u = rng.standard_normal(function(*map(Tensor, arrays)).shape)
        _check_first(function, arrays, u, rng, step, tolerance)
        if order == 2:
            for i in range(len(arrays)):
                def gradient(*xs, i=i):
                    return grad(sum(function(*xs) * u), list(xs), create_graph=True)[i]
                try:
                    _check_first(
                        gradient, arrays, rng.standard_normal(arrays[i].shape), rng, step, tolerance
                    )
                except AssertionError as error:
                    raise AssertionError(f"second order, gradient of input {i}: {error}") from None
    return True


def _check_first(function, arrays, u, rng, step, tolerance):
    def projected(*arrays):
        xs = [Tensor(x, requires_grad=True) for x in arrays]
        return xs, sum(function(*xs) * u)

    xs, y = projected(*arrays)
    # A result that depends on no input (the gradient of x + 1, say) has gradient 0.
    gradients = grad(y, xs) if y.requires_grad else [np.zeros_like(x) for x in arrays]
    for i, (x, g) in enumerate(zip(arrays, gradients)):
        v = rng.standard_normal(x.shape)
        v /= np.linalg.norm(v)
        ahead, behind = (
            projected(*arrays[:i], x + h * v, *arrays[i + 1 :])[1].item() for h in (step, -step)
        )
        numeric, analytic = (ahead - behind) / (2 * step), float((g * v).sum())
        error = np.abs(analytic - numeric) / (np.abs(analytic) + np.abs(numeric) + 1e-3)
        if not error <= tolerance:
            raise AssertionError(
                f"input {i} of shape {x.shape}: the gradient is {analytic:.9g}, finite differences "
                f"{numeric:.9g} (relative error {error:.1e}, allowed {tolerance:.0e})")
