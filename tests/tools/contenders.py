"""One training step, written for minidl, compiled by it, by hand in NumPy, for PyTorch and for JAX: what `benchmark.py` compares.

Each function takes a Task and gives a function that does one step, forward, softmax cross-entropy, backward and
update, on the same batch every time, and returns the loss. All start from the same weights.
"""

from dataclasses import dataclass

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, compiler, optim
from minidl import functional as F

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)

try:
    import jax
except ImportError:
    jax = None

LR = {"SGD": 0.1, "Adam": 0.001}
EPS, MOMENTUM = 1e-5, 0.1


@dataclass
class Task:
    """A net of Dense layers of these sizes, and what it is trained with."""

    sizes: list
    batch: int
    activation: str = "relu"
    batch_norm: bool = False
    optimizer: str = "SGD"

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.kernels = [rng.normal(0, n ** -0.5, (n, units)).astype(np.float32) for n, units in zip(self.sizes, self.sizes[1:])]
        self.x, self.labels = rng.random((self.batch, self.sizes[0]), np.float32), rng.integers(0, self.sizes[-1], self.batch)

    def __str__(self):
        return (f"{'-'.join(map(str, self.sizes))} {self.activation}{' BN' if self.batch_norm else ''}, {self.batch}, "
                f"{self.optimizer}")


def network(task):
    """The net with its initial weights, and an optimizer for it."""
    layers = []
    for units in task.sizes[1:-1]:
        layers += [Dense(units), *([BatchNorm(MOMENTUM, EPS)] if task.batch_norm else []), Activation(task.activation)]
    model = Sequential([*layers, Dense(task.sizes[-1])]).build(task.sizes[0])
    for layer, kernel in zip([layer for layer in model.layers if isinstance(layer, Dense)], task.kernels):
        layer.kernel.data = kernel.copy()
    return model, getattr(optim, task.optimizer)(model.parameters(), lr=LR[task.optimizer])


def minidl_step(task):
    """The step as a lesson writes it."""
    model, optimizer = network(task)
    x, labels = task.x, task.labels

    def step():
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def compiled_step(task):
    """The program that `minidl.compiler` writes for the step."""
    model, optimizer = network(task)
    namespace, parameters = {}, np.concatenate([p.data.reshape(-1) for p in model.parameters()])
    exec(compiler.source(model, F.cross_entropy, optimizer, task.batch), namespace)
    moments = [np.zeros_like(parameters) for _ in optimizer.kept]
    statistics = [np.concatenate([start(layer.running_mean) for layer in model if isinstance(layer, BatchNorm)
                                  for start in (np.zeros_like, np.ones_like)])] if task.batch_norm else []
    program = namespace["program"](parameters, *moments, *statistics)
    x, labels, rate, t = task.x, task.labels, LR[task.optimizer], 0

    def step():
        nonlocal t
        t += 1
        return program(x, labels, rate, t)[0] if moments else program(x, labels, rate)[0]

    return step


def numpy_step(task):
    """The step with all gradients derived by hand: plain NumPy, no framework."""
    x, labels, activation, batch_norm = task.x, task.labels, task.activation, task.batch_norm
    kernels = [kernel.copy() for kernel in task.kernels]
    biases = [np.zeros(kernel.shape[1], np.float32) for kernel in kernels]
    gammas = [np.ones_like(bias) for bias in biases[:-1]] if batch_norm else []
    betas = [np.zeros_like(gamma) for gamma in gammas]
    running_means, running_vars = [beta.copy() for beta in betas], [gamma.copy() for gamma in gammas]
    n, rows, hidden = len(x), np.arange(len(x)), len(kernels) - 1
    update = {"SGD": _sgd, "Adam": _adam}[task.optimizer]([*kernels, *biases, *gammas, *betas])

    def normalize(i, z):
        mean = z.sum(axis=0) / n
        centred = z - mean
        var = np.einsum("ij,ij->j", centred, centred) / n
        scale = 1 / np.sqrt(var + EPS)
        running_means[i] = (1 - MOMENTUM) * running_means[i] + MOMENTUM * mean
        running_vars[i] = (1 - MOMENTUM) * running_vars[i] + MOMENTUM * (var * (n / (n - 1)))
        return centred * (gammas[i] * scale) + betas[i], centred, scale

    def normalize_gradient(i, g, centred, scale):
        g_beta, g_gamma = g.sum(axis=0), np.einsum("ij,ij->j", g, centred) * scale
        gx = gammas[i] * scale * (g - g_beta / n - centred * (g_gamma * scale / n))
        return gx, g_gamma, g_beta

    def step():
        outputs, saved = [x], []
        for i, (kernel, bias) in enumerate(zip(kernels, biases)):
            z = outputs[i] @ kernel + bias
            if i < hidden:
                if batch_norm:
                    z, centred, scale = normalize(i, z)
                    saved.append((centred, scale))
                outputs.append(np.maximum(z, 0) if activation == "relu" else 1 / (1 + np.exp(-z)))

        z = z - z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - z[rows, labels]).sum() / n
        g = p / total
        g[rows, labels] -= 1
        g /= n

        g_kernels, g_biases, g_gammas, g_betas = ([None] * len(a) for a in (kernels, biases, gammas, betas))
        for i in reversed(range(hidden + 1)):
            g_kernels[i], g_biases[i] = outputs[i].T @ g, g.sum(axis=0)
            if i:
                y = outputs[i]
                g = g @ kernels[i].T
                g = g * (y > 0) if activation == "relu" else g * (y * (1 - y))
                if batch_norm:
                    g, g_gammas[i - 1], g_betas[i - 1] = normalize_gradient(i - 1, g, *saved[i - 1])
        update([*g_kernels, *g_biases, *g_gammas, *g_betas])
        return loss

    return step


def _sgd(parameters):
    def update(gradients):
        for p, g in zip(parameters, gradients):
            p -= LR["SGD"] * g

    return update


def _adam(parameters, b1=0.9, b2=0.999, eps=1e-8):
    ms, vs = [np.zeros_like(p) for p in parameters], [np.zeros_like(p) for p in parameters]
    t = 0

    def update(gradients):
        nonlocal t
        t += 1
        for p, g, m, v in zip(parameters, gradients, ms, vs):
            m *= b1
            m += (1 - b1) * g
            v *= b2
            v += (1 - b2) * g * g
            p -= LR["Adam"] / (1 - b1 ** t) * m / (np.sqrt(v / (1 - b2 ** t)) + eps)

    return update


def products_step(task):
    """Only the matrix products of a step: forward, for the kernels, and for all inputs but the pixels."""
    inputs = [task.x] + [np.ones((task.batch, units), np.float32) for units in task.sizes[1:]]

    def step():
        for i, kernel in enumerate(task.kernels):
            inputs[i].dot(kernel)
            inputs[i].T.dot(inputs[i + 1])
            if i:
                inputs[i + 1].dot(kernel.T)

    return step


def torch_step(task):
    """The step in PyTorch, eager."""
    layers = []
    for kernel in task.kernels:
        dense = torch.nn.Linear(*kernel.shape)
        dense.weight.data, dense.bias.data = torch.tensor(kernel.T.copy()), torch.zeros(kernel.shape[1])
        layers.append(dense)
        if kernel is not task.kernels[-1]:
            layers += [torch.nn.BatchNorm1d(kernel.shape[1], EPS, MOMENTUM)] if task.batch_norm else []
            layers.append(torch.nn.ReLU() if task.activation == "relu" else torch.nn.Sigmoid())
    model = torch.nn.Sequential(*layers)
    optimizer = getattr(torch.optim, task.optimizer)(model.parameters(), lr=LR[task.optimizer])
    x, labels = torch.tensor(task.x), torch.tensor(task.labels)

    def step():
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def jax_step(task):
    """The step in JAX, compiled by its jit; its thread pool is set by `benchmark.py`."""
    n, hidden, rate = task.batch, len(task.kernels) - 1, LR[task.optimizer]
    weights = [{"kernel": jax.numpy.asarray(kernel), "bias": jax.numpy.zeros(kernel.shape[1])} for kernel in task.kernels]
    running = []
    for layer in weights[:-1] if task.batch_norm else []:
        layer["gamma"], layer["beta"] = jax.numpy.ones_like(layer["bias"]), jax.numpy.zeros_like(layer["bias"])
        running.append((jax.numpy.zeros_like(layer["bias"]), jax.numpy.ones_like(layer["bias"])))
    state = () if task.optimizer == "SGD" else tuple(jax.tree.map(jax.numpy.zeros_like, weights) for _ in range(2))

    def loss_of(weights, running, x, labels):
        moved = []
        for i, layer in enumerate(weights):
            x = x @ layer["kernel"] + layer["bias"]
            if i < hidden:
                if task.batch_norm:
                    mean, var = x.mean(axis=0), x.var(axis=0)
                    moved.append(((1 - MOMENTUM) * running[i][0] + MOMENTUM * mean,
                                  (1 - MOMENTUM) * running[i][1] + MOMENTUM * n / (n - 1) * var))
                    x = layer["gamma"] * (x - mean) / jax.numpy.sqrt(var + EPS) + layer["beta"]
                x = jax.nn.relu(x) if task.activation == "relu" else jax.nn.sigmoid(x)
        return -jax.nn.log_softmax(x)[jax.numpy.arange(n), labels].mean(), moved

    def sgd(weights, gradients, state, t):
        return jax.tree.map(lambda p, g: p - rate * g, weights, gradients), state

    def adam(weights, gradients, state, t, b1=0.9, b2=0.999, eps=1e-8):
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], gradients)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state[1], gradients)
        return jax.tree.map(lambda p, m, v: p - rate / (1 - b1 ** t) * m / (jax.numpy.sqrt(v / (1 - b2 ** t)) + eps),
                            weights, m, v), (m, v)

    def program(weights, running, state, t, x, labels):
        (loss, running), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, running, x, labels)
        weights, state = {"SGD": sgd, "Adam": adam}[task.optimizer](weights, gradients, state, t)
        return weights, running, state, loss

    compiled = jax.jit(program, donate_argnums=(0, 1, 2))
    x, labels, t = jax.numpy.asarray(task.x), jax.numpy.asarray(task.labels), 0

    def step():
        nonlocal weights, running, state, t
        t += 1
        weights, running, state, loss = compiled(weights, running, state, float(t), x, labels)
        return loss.block_until_ready()

    return step


STEPS = {"minidl": minidl_step, "compiled": compiled_step, "by hand": numpy_step,
         **({} if torch is None else {"PyTorch": torch_step}), **({} if jax is None else {"JAX": jax_step}),
         "products": products_step}
