# %% [markdown]
# # Solutions to lesson 17: ablation
#
# For teachers. Numbers: digits, seeds 0 to 2.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from functools import partial

import numpy as np

from minidl import Activation, BatchNorm, Dense, LayerNorm, Module, Parameter
from minidl import Sequential, data, experiments, optim
from minidl import functional as F

digits = data.load("digits")

# %%
class Ablated(Module):
    built = False

    def forward(self, x):
        if not self.built:
            one = np.ones(x.shape[1], np.float32)
            self.gamma, self.beta = Parameter(one), Parameter(0 * one)
            self.running_mean, self.running_var, self.built = 0 * one, one, True
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return self.gamma * self.normalized(x, mean, var) + self.beta
        mean, var = x.mean(axis=0), x.var(axis=0)
        self.running_mean = 0.9 * self.running_mean + 0.1 * mean.numpy()
        self.running_var = 0.9 * self.running_var + 0.1 * var.numpy()
        return self.gamma * self.normalized(x, mean, var) + self.beta


class MeanOnly(Ablated):
    def normalized(self, x, mean, var):
        return x - mean

# %%
class MeanOnlyCut(Ablated):
    def normalized(self, x, mean, var):
        return x - (mean.detach() if self.training else mean)


class MeanCut(Ablated):
    def normalized(self, x, mean, var):
        return (x - (mean.detach() if self.training else mean)) / F.sqrt(var + 1e-5)


class HalfWay(Ablated):
    def normalized(self, x, mean, var):
        return (x - mean) / F.sqrt(F.sqrt(var + 1e-5))


def network(seed, norm):
    layers = []
    for _ in range(3):
        layers += [Dense(64, kernel_initializer="he_normal"), norm(),
                   Activation("relu")]
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)

# %%
def accuracies(norm, rates, steps=120, seeds=(0, 1, 2)):
    rows = []
    for lr in rates:
        runs = [experiments.run(network(seed, norm), digits, optimizer=optim.SGD(lr=lr),
                                steps=steps, batch_size=64, eval_steps=[steps])
                for seed in seeds]
        rows.append(np.nan_to_num([run.accuracy[0] for run in runs], nan=0.1).mean())
    return ", ".join(f"{lr:g}: {value:.3f}" for lr, value in zip(rates, rows))


# %% [markdown]
# ## 1. Without epsilon

# %%
for eps in (1e-5, 0.0):
    print(f"1: eps {eps:g}, accuracy by rate: "
          + accuracies(partial(BatchNorm, eps=eps), (0.1, 1.0, 3.0)))

# %% [markdown]
# ANSWER1
#
# ## 2. Four times the steps

# %%
for name, norm in (("BatchNorm", BatchNorm), ("mean only", MeanOnly),
                   ("mean cut", MeanCut), ("LayerNorm", LayerNorm)):
    print(f"2: 480 steps, {name}: " + accuracies(norm, (0.03, 0.1), 480, (0,)))

# %% [markdown]
# ANSWER2
#
# ## 3. Mean only, its gradient cut

# %%
for name, norm in (("mean only", MeanOnly), ("mean only, cut", MeanOnlyCut)):
    print(f"3: {name}: " + accuracies(norm, (0.03, 0.1, 0.3)))

# %% [markdown]
# ANSWER3
#
# ## 4. Half the way

# %%
print("4: half the way: " + accuracies(HalfWay, (0.1, 0.3, 1.0, 3.0)))

# %% [markdown]
# ANSWER4
#
# ## 5. Take the useless part out of the gradient by hand
#
# A unit's mean is $w \cdot \bar u$, where $\bar u$ is the mean of the layer's inputs.
# The part of the gradient along $\bar u$ moves the mean and is taken out.

# %%
def train(norm, project, lr=0.1, steps=120):
    model, losses = network(0, norm).build(784).train(), []
    stream = data.batches(*digits[0], 64, model.shuffle_rng)
    optimizer = optim.SGD(model.parameters(), lr=lr)
    for _, (x, y) in zip(range(steps), stream):
        model.zero_grad()
        received, out = [], x
        for layer in model.layers:
            received.append(out if isinstance(out, np.ndarray) else out.numpy())
            out = layer(out)
        loss = F.cross_entropy(out, y)
        loss.backward()
        for layer, u in zip(model.layers[:-1], received):
            if project and isinstance(layer, Dense):
                mean = u.mean(axis=0)
                along = np.outer(mean, mean @ layer.kernel.grad) / (mean @ mean)
                layer.kernel.grad = layer.kernel.grad - along
        optimizer.step()
        losses.append(loss.item())
    return np.mean(losses[-20:])


for name, norm, project in (("BatchNorm", BatchNorm, False),
                            ("mean cut", MeanCut, False),
                            ("mean cut, part taken out", MeanCut, True)):
    print(f"5: {name}: loss {train(norm, project):.3f}")

# %% [markdown]
# ANSWER5
#
# ## 6. LayerNorm and scale
#
# Of lesson 16's argument one step fails: LayerNorm divides by one number for all
# units of an image, so a single unit's length does matter.

# %%
x = digits[0][0][:64]
for name, norm in (("BatchNorm", BatchNorm), ("LayerNorm", LayerNorm)):
    model = network(0, norm).build(784).train()
    before = model(x).numpy()
    model.layers[0].kernel.data = 10 * model.layers[0].kernel.data
    layer_scaled = model(x).numpy()
    model.layers[0].kernel.data = model.layers[0].kernel.data / np.float32(10)
    model.layers[0].kernel.data[:, 0] *= 10
    unit_scaled = model(x).numpy()
    print(f"6: {name}: the whole layer times 10 changes the logits by "
          f"{np.abs(layer_scaled - before).max():.0e}, one unit times 10 by "
          f"{np.abs(unit_scaled - before).max():.0e}")

# %% [markdown]
# ANSWER6
