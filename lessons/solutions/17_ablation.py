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
from minidl import Sequential, experiments, optim
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("17_solutions")
data = lesson.load_data()


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
def accuracies(name, norm, rates, steps=120, seeds=3):
    """Print and return the mean accuracy at each rate."""
    means = {}
    for lr in rates:
        runs = [experiments.run(network(seed, norm), data, optimizer=optim.SGD(lr=lr),
                                steps=steps, batch_size=64, eval_steps=[steps])
                for seed in lesson.seeds(seeds)]
        means[lr] = np.nan_to_num([run.accuracy[0] for run in runs], nan=0.1).mean()
    print(f"{name}, accuracy by rate: "
          + ", ".join(f"{lr:g}: {value:.3f}" for lr, value in means.items()))
    return means


# %% [markdown]
# ## 1. Easy: without epsilon
#
# It does not matter at any rate tried: 0.931, 0.937, 0.893 without, 0.930, 0.933,
# 0.885 with it. The variance of a unit is far above 1e-5 here. It would matter for a
# unit that is constant in a batch, which would divide by 0.

# %%
found = [accuracies(f"1: eps {eps:g}", partial(BatchNorm, eps=eps), (0.1, 1.0, 3.0))
         for eps in (1e-5, 0.0)]
lesson.check("1: rates 0.1 and 1: change of accuracy without eps",
             max(abs(found[0][lr] - found[1][lr]) for lr in (0.1, 1.0)), at_most=0.02,
             claim=False)

# %% [markdown]
# ## 2. Easy: six times the steps
#
# BatchNorm is at 0.945 and 0.959, LayerNorm at 0.945 and 0.954, and the mean alone
# has come up to 0.925 and 0.949. Their differences were mostly delays. *Mean cut*
# stays behind (0.828 and 0.804): it has not been slow, it goes nowhere.

# %%
late = {}
for name, norm in (("BatchNorm", BatchNorm), ("mean only", MeanOnly),
                   ("mean cut", MeanCut), ("LayerNorm", LayerNorm)):
    late[name] = accuracies(f"2: 480 steps, {name}", norm, (0.03, 0.1), 480, 1)[0.1]
lesson.check("2: 480 steps, rate 0.1: accuracy, mean only - mean cut",
             late["mean only"] - late["mean cut"], at_least=0.03, claim=False)

# %% [markdown]
# ## 3. Medium: mean only, its gradient cut
#
# No. 0.638, 0.785 and 0.799 against 0.739, 0.905 and 0.927 with the gradient. The
# subtraction helps through its gradient above all.

# %%
whole, cut = (accuracies(f"3: {name}", norm, (0.03, 0.1, 0.3)) for name, norm in
              (("mean only", MeanOnly), ("mean only, cut", MeanOnlyCut)))
lesson.check("3: rate 0.1: accuracy of the mean only - the same with its gradient cut",
             whole[0.1] - cut[0.1], at_least=0.04, claim=False)

# %% [markdown]
# ## 4. Medium: half the way
#
# Hardly: 0.928, 0.932, 0.920 and 0.876 by rate, BatchNorm has 0.93, 0.94, 0.93 and
# 0.88. What is lost is exact scale invariance: weights times $a$ give outputs times
# $\sqrt a$. Half of it seems to be enough at these rates.

# %%
half = accuracies("4: half the way", HalfWay, (0.1, 0.3, 1.0, 3.0))
lesson.check("4: half the way: least accuracy of the rates 0.1 to 1",
             min(half[lr] for lr in (0.1, 0.3, 1.0)), at_least=0.88, claim=False)

# %% [markdown]
# ## 5. Medium: take the useless part out of the gradient by hand
#
# Nearly: *mean cut* has the loss 0.693, with the part taken out 0.350, BatchNorm
# 0.318 (and *variance cut* about 0.35). So the steps that move a unit's mean were the
# trouble, and they come through the kernel. A unit's mean is $w \cdot \bar u$, where
# $\bar u$ is the mean of the layer's inputs, so the part of the gradient along
# $\bar u$ is the one that moves it.

# %%
def train(norm, project, lr=0.1, steps=120):
    model, losses = network(lesson.seed, norm).build(784).train(), []
    optimizer = optim.SGD(model.parameters(), lr=lr)
    stream = batches(*data[0], 64, model.shuffle_rng)
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


loss = {}
for name, norm, project in (("BatchNorm", BatchNorm, False),
                            ("mean cut", MeanCut, False),
                            ("mean cut, part taken out", MeanCut, True)):
    loss[name] = train(norm, project)
    print(f"5: {name}: loss {loss[name]:.3f}")
lesson.check("5: loss, mean cut / with the part taken out",
             loss["mean cut"] / loss["mean cut, part taken out"], at_least=1.3,
             claim=False)

# %% [markdown]
# ## 6. Research: LayerNorm and scale
#
# Of lesson 16's argument one step fails. LayerNorm divides by one number for all
# units of an image, so the length of the whole layer's weights cancels (1e-6), but
# that of a single unit does not (the logits change by 1). One unit can take over a
# layer. To prove this wrong as the cause, normalise each unit's weights to length 1
# after each step and see whether LayerNorm's largest rate grows. If not, the
# explanation falls.

# %%
x, changed = data[0][0][:64], {}
for name, norm in (("BatchNorm", BatchNorm), ("LayerNorm", LayerNorm)):
    model = network(lesson.seed, norm).build(784).train()
    before = model(x).numpy()
    model.layers[0].kernel.data = 10 * model.layers[0].kernel.data
    layer_scaled = model(x).numpy()
    model.layers[0].kernel.data = model.layers[0].kernel.data / np.float32(10)
    model.layers[0].kernel.data[:, 0] *= 10
    unit_scaled = model(x).numpy()
    print(f"6: {name}: the whole layer times 10 changes the logits by "
          f"{np.abs(layer_scaled - before).max():.0e}, one unit times 10 by "
          f"{np.abs(unit_scaled - before).max():.0e}")
    changed[name] = np.abs(unit_scaled - before).max()
lesson.check("6: one unit times 10: change of the logits, BatchNorm",
             changed["BatchNorm"], at_most=0.01)
lesson.check("6: one unit times 10: change of the logits, LayerNorm",
             changed["LayerNorm"], at_least=0.1, claim=False)
lesson.finish()
