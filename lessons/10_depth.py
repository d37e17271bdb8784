# %% [markdown]
# # 10. Depth: are vanishing and exploding gradients solved?
#
# Batch Normalization solves vanishing and exploding gradients, says one of the texts, and so it allows deeper networks.
# Another says that it lowers the risk of both. That is two claims in one sentence. We test each by itself.
#
# You need: lessons 7 and 9. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, functional as F, initializers, optim, plotting, record
from minidl.lessonkit import Lesson

lesson = Lesson("10_depth")
data = lesson.load_data()
(x_train, y_train), _ = data

# %% [markdown]
# ## The networks
#
# 2, 8 or 32 hidden layers of 50 units, batches of 64. Sigmoid units get Xavier's (Glorot's) initial weights, ReLU
# units get He's, which were invented to keep deep plain networks in shape. The initial weights are no straw man.

# %%
DEPTHS = [2, 8, 32]
BN, PLAIN = "with BatchNorm", "without BatchNorm"
WEIGHTS = {"sigmoid": initializers.glorot_normal, "relu": initializers.he_normal, "linear": initializers.glorot_normal}


def hidden_layers(depth, units, activation, batch_norm):
    layers = []
    for _ in range(depth):
        layers.append(Dense(units, kernel_initializer=WEIGHTS[activation]))
        if batch_norm:
            layers.append(BatchNorm())
        layers.append(Activation(activation))
    return layers


def network(seed, depth, activation, batch_norm):
    output = Dense(10, kernel_initializer=WEIGHTS[activation])
    return Sequential([*hidden_layers(depth, 50, activation, batch_norm), output], seed=seed)


def gradients(log):
    """The gradient norms of all kernels, from the first layer to the last: an array (steps, layers)."""
    return log.array("grad_norm", [name for name in log.parameters if name.endswith("kernel")])


# %% [markdown]
# ## Predict
#
# Before the first step, we compare the gradient of the first kernel with that of the last. Backpropagation multiplies
# by the slope of the activation once per layer. A sigmoid's slope is at most $\frac{1}{4}$. What do you expect of the ratio
# first / last in a network of 32 layers of sigmoids? Of ReLUs? And what does BatchNorm make of each?
#
# ## Run

# %%
SEEDS = lesson.seeds(3)
at_start = {}
for activation in ("sigmoid", "relu"):
    for name in (BN, PLAIN):
        for depth in DEPTHS:
            logs = []
            for seed in SEEDS:
                model = network(seed, depth, activation, name == BN).build(784).train()
                with record(model) as log:
                    F.cross_entropy(model(x_train[:64]), y_train[:64]).backward()
                logs.append(gradients(log)[0])
            at_start[activation, name, depth] = np.array(logs)  # (seeds, layers)

ratio = {key: np.median(norms[:, 0] / norms[:, -1]) for key, norms in at_start.items()}
print("gradient of the first kernel / gradient of the last, before training, median of 3 seeds")
print(" " * 27 + "".join(f"{depth:2} layers".rjust(12) for depth in DEPTHS))
for activation in ("sigmoid", "relu"):
    for name in (BN, PLAIN):
        print(f"{activation:8} {name:18}" + "".join(f"{ratio[activation, name, depth]:12.2g}" for depth in DEPTHS))

# %%
fig, axes = plotting.figure(1, 2, size=(13, 6), title="First layer / last layer, with BatchNorm: "
                            f"{ratio['sigmoid', BN, 32]:.1f} (sigmoid), {ratio['relu', BN, 32]:.0f} (ReLU)")
for ax, activation in zip(axes, ("sigmoid", "relu")):
    for i, name in enumerate((BN, PLAIN)):
        plotting.band(np.arange(1, 34), at_start[activation, name, 32], name, i, ax)
    ax.set(title=f"32 hidden layers, {activation}", xlabel="layer, from the input to the output", yscale="log",
           ylabel="norm of the kernel's gradient" if activation == "sigmoid" else "")
plotting.legend(axes[0])
lesson.show(fig, "gradients")

# %% [markdown]
# Sigmoids first. Xavier's weights keep the norm of a signal, the slope takes a factor of 4 from layer to layer, forward
# and backward: $4^{-32} \approx 5 \cdot 10^{-20}$. BatchNorm stretches the shrunken signal to standard deviation 1 again, and
# its backward pass multiplies the gradient by the same number. The vanishing is cured.
#
# Now look at ReLU. The plain network with He's weights needed no cure. With BatchNorm the gradient *explodes*: it grows
# from layer to layer on its way back to the input.
#
# ## Explain: a growth that can be computed
#
# Going back through a ReLU, half of the gradient's entries become 0: its squared norm is multiplied by $\frac{1}{2}$. Going
# forward, the ReLU leaves of the variance 1 only $\frac{\pi - 1}{2 \pi} \approx 0.34$ (lesson 9). The next BatchNorm
# stretches this to 1 again, and going back it divides the gradient's squared norm by it. Together, per layer,
#
# $\frac{1}{2} \cdot \frac{2 \pi}{\pi - 1} = \frac{\pi}{\pi - 1} \approx 1.47, \quad
# \sqrt{1.47} \approx 1.21 \text{ for the norm.}$
#
# That is for large batches. Yang et al. (2019) computed it for every batch size $B$, in wide networks with random
# weights (their theorem 8). With linear layers in place of the ReLUs the factor of the squared norm is
# $\frac{B-2}{B-3}$. A larger or smaller scale of the weights changes nothing: BatchNorm removes it.
#
# We check it: 30 layers of 256 units, a random batch, a random gradient at the end. Predict: will the growth
# be smaller or larger with a smaller batch?


# %%
def growth_by_layer(seed, batch_size, activation, batch_norm=True):
    """The norm of the gradient at the output of each Dense layer, divided by that at the last."""
    model = Sequential(hidden_layers(30, 256, activation, batch_norm), seed=seed).build(256).train()
    rng = np.random.default_rng(seed)
    inputs, end = (rng.standard_normal((batch_size, 256), np.float32) for _ in range(2))
    with record(model) as log:
        (model(inputs) * end).sum().backward()
    norms = log.array("grad_norm", [name for name in log.layers if name.startswith("dense")])[0]
    return norms / norms[-1]


def theory(batch_size, activation):
    """The factor for the norm, per layer: Yang et al. 2019, theorem 8."""
    if activation == "linear":
        return np.sqrt((batch_size - 2) / (batch_size - 3))
    c = -1 / (batch_size - 1)  # the cosine of the angle between two normalised samples
    j0 = (np.pi - np.arccos(c)) / np.pi
    j1 = (np.sqrt(1 - c ** 2) + (np.pi - np.arccos(c)) * c) / np.pi
    return np.sqrt(((batch_size - 1 + j0) / (1 - j1) - 1) / (batch_size - 3))


LIMIT = np.sqrt(np.pi / (np.pi - 1))
simulated, growth = {}, {}
print("\ngrowth of the gradient's norm per layer (layers 5 to 25, median of 3 seeds)")
for activation in ("relu", "linear"):
    for batch_size in (16, 64):
        norms = np.array([growth_by_layer(seed, batch_size, activation) for seed in SEEDS])
        simulated[activation, batch_size] = norms
        growth[activation, batch_size] = np.median((norms[:, 4] / norms[:, 24]) ** (1 / 20))
        print(f"{activation:6} B = {batch_size}: {growth[activation, batch_size]:.4f}, "
              f"theory {theory(batch_size, activation):.4f}")
print(f"theory for ReLU and large B: {LIMIT:.4f}")
plain = np.array([growth_by_layer(seed, 64, "relu", batch_norm=False) for seed in SEEDS])

# %%
fig, ax = plotting.figure(size=(12, 6.5), title=f"ReLU and BatchNorm, B = 64: {growth['relu', 64]:.2f} times per layer, "
                                                f"{np.median(simulated['relu', 64][:, 0]):.0f} times in all")
layers = np.arange(1, 31)
for i, (norms, label) in enumerate([(simulated["relu", 64], "ReLU + BN, B = 64"), (plain, "ReLU, no BN"),
                                    (simulated["relu", 16], "ReLU + BN, B = 16"),
                                    (simulated["linear", 16], "linear + BN, B = 16")]):
    plotting.band(layers, norms, label, i, ax)
for activation, batch_size in (("relu", 64), ("relu", 16), ("linear", 16)):
    ax.plot(layers, theory(batch_size, activation) ** (30 - layers), color="black", linewidth=1,
            label="theory" if activation == "linear" else None)
ax.set(xlabel="layer, from the input to the output", ylabel="norm of the gradient,\nrelative to the last layer", yscale="log")
plotting.legend(ax)
lesson.show(fig, "growth")

# %% [markdown]
# ## Does it matter for learning?
#
# We train all networks for 100 steps. The plain network may choose the best of three learning rates
# at each depth; BatchNorm must take 0.1. Predict: at which depth does each of the four kinds fail?


# %%
def train(activation, name, depth, lr, seed):
    """The job of our sweeps: train one network. A network that diverged is left guessing, one in ten."""
    run = experiments.run(network(seed, depth, activation, name == BN), data, optimizer=optim.SGD(lr=lr), steps=100,
                          batch_size=64, eval_steps=[100])
    return {"accuracy": np.nan_to_num(run.accuracy[-1], nan=0.1)}


rates = {BN: [0.1], PLAIN: [0.03, 0.1, 0.3]}
accuracy = {}
print("\ntest accuracy after 100 steps, mean of 2 seeds")
print(" " * 27 + "".join(f"{depth:2} layers".rjust(12) for depth in DEPTHS))
for activation in ("sigmoid", "relu"):
    for name in (BN, PLAIN):
        result = experiments.sweep({"activation": [activation], "name": [name], "depth": DEPTHS, "lr": rates[name],
                                    "seed": lesson.seeds(2)}, train)
        best = result.array("accuracy")[0, 0].max(axis=1)  # (depths, seeds)
        accuracy.update({(activation, name, depth): values for depth, values in zip(DEPTHS, best)})
        print(f"{activation:8} {name:18}" + "".join(f"{values.mean():12.3f}" for values in best))

# %%
fig, axes = plotting.figure(1, 2, sharey=True, size=(13, 6), title="32 layers with BatchNorm: "
                            f"{accuracy['sigmoid', BN, 32].mean():.0%} with sigmoids, "
                            f"{accuracy['relu', BN, 32].mean():.0%} with ReLUs")
for ax, activation in zip(axes, ("sigmoid", "relu")):
    for i, name in enumerate((BN, PLAIN)):
        plotting.band(DEPTHS, np.array([accuracy[activation, name, depth] for depth in DEPTHS]).T, name, i, ax)
    ax.set(title=activation, xscale="log", ylim=(0, 1), xlabel="hidden layers",
           ylabel="test accuracy after 100 steps" if activation == "sigmoid" else "")
    ax.set_xticks(DEPTHS, labels=DEPTHS)
    ax.minorticks_off()
plotting.legend(axes[0])
lesson.show(fig, "accuracy")

# %% [markdown]
# Deeper networks: with sigmoids yes, by far. With ReLUs BatchNorm helps at 8 layers and hardly at 32. Was it only the rate?
# And does the explosion last? Yang et al. report that networks with BatchNorm recover from it after the first steps. We
# train the deep ReLU network at a smaller and a larger rate and look on.

# %%
after = {}
fig, ax = plotting.figure(size=(12, 6))
for i, lr in enumerate((0.03, 0.3)):
    model = network(lesson.seed, 32, "relu", batch_norm=True)
    with record(model, every=5) as log:
        run = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=100, batch_size=64, eval_steps=[100])
    norms = gradients(log)
    with np.errstate(divide="ignore", invalid="ignore"):  # units that all died have no gradient
        ratios = norms[:, 0] / norms[:, -1]
    after[lr] = dict(zip(log.steps, ratios))
    weights = log["dense.kernel", "norm"]
    print(f"rate {lr}: gradient first / last {ratios[0]:.0f}, after 5 steps {ratios[1]:.2g}, after 20 {ratios[4]:.2g}; norm of "
          f"the first kernel {weights[0]:.3g}, after 5 steps {weights[1]:.3g}; test accuracy after 100 {run.accuracy[-1]:.3f}")
    color, line = plotting.LOOKS[(0, 2)[i]]
    ax.plot(log.steps, ratios, color=color, linestyle=line, linewidth=3, label=f"32 x (ReLU + BN), rate {lr}")
fig.suptitle(f"The explosion is over after 20 steps: {after[0.03][0]:.0f} has become {after[0.03][20]:.0f}",
             fontsize=18, fontweight="bold")
ax.axhline(1, color="0.4", linewidth=1.2, linestyle=":")
ax.set(xlabel="training step", ylabel="gradient of the first kernel /\ngradient of the last", yscale="log")
plotting.legend(ax)
lesson.show(fig, "recovery")

# %% [markdown]
# The explosion ends itself: large gradients make the weights of the first layers large, and in front of a BatchNorm
# larger weights get smaller gradients (lesson 9). Yet the network has learned little. We have measured an explosion and a
# failure; that the one is the cause of the other we have not shown.
#
# What we may say: BatchNorm cures vanishing gradients, and deep networks of sigmoids learn. It does not cure exploding
# gradients: in deep ReLU networks it creates them.

# %%
print()
lesson.check("vanishing: sigmoid, 8 layers, without BatchNorm, gradient first / last", ratio["sigmoid", PLAIN, 8], at_most=1e-3,
             claim=False)
for depth in (8, 32):
    lesson.check(f"vanishing: sigmoid, {depth} layers, with BatchNorm, powers of ten between first and last",
                 abs(np.log10(ratio["sigmoid", BN, depth])), at_most=1)
lesson.check("vanishing: sigmoid, 8 layers, accuracy without BatchNorm", accuracy["sigmoid", PLAIN, 8].mean(), at_most=0.2,
             claim=False)
lesson.check("vanishing: sigmoid, 8 layers, accuracy with BatchNorm", accuracy["sigmoid", BN, 8].mean(), at_least=0.7)
lesson.check("vanishing: sigmoid, 32 layers, accuracy with BatchNorm", accuracy["sigmoid", BN, 32].mean(), at_least=0.5)
lesson.check(f"exploding: ReLU, B = 64, growth per layer, distance from {LIMIT:.4f}", abs(growth["relu", 64] - LIMIT),
             at_most=0.06)
lesson.check("exploding: ReLU, B = 64, growth over 30 layers", np.median(simulated["relu", 64][:, 0]), at_least=50)
lesson.check("exploding: ReLU, without BatchNorm, growth over 30 layers", np.median(plain[:, 0]), at_most=5, claim=False)
lesson.check("exploding: ReLU, 32 layers on images, gradient first / last with BatchNorm, over that without",
             ratio["relu", BN, 32] / ratio["relu", PLAIN, 32], at_least=20)
lesson.check("recovery: the same network at rate 0.03, first / last after 20 steps, over that before",
             after[0.03][20] / after[0.03][0], at_most=0.1, on_default_data=True, claim=False)
lesson.check("depth: ReLU, 32 layers, accuracy with - without BatchNorm",
             (accuracy["relu", BN, 32] - accuracy["relu", PLAIN, 32]).mean(), at_most=0.3, on_default_data=True, claim=False)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: what does `theory(4, "relu")` give, squared? Why can a batch of 3 not work for linear layers?
# 2. Easy: put tanh in place of ReLU in the simulation (with Xavier's weights). How large is the growth now?
# 3. Medium: give the plain sigmoid network weights four times as large, so that weight times slope is near 1. Is it cured?
# 4. Medium: write a Module with a shortcut, `forward(x) = x + block(x)`, and stack 16 of them. What is left of the growth?
# 5. Research: why do 32 layers of ReLU and BatchNorm learn so slowly, if not for the gradient? Compare the last
#    layer's answers to two different images before training, at 2 and at 32 layers.
#
# While `python -m minidl race` runs: [8 layers of sigmoids](http://127.0.0.1:8107/#preset=10),
# [32 layers of ReLUs](http://127.0.0.1:8107/#preset=10b).
#
# Sources: G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein and S. Schoenholz, A Mean Field Theory of Batch Normalization,
# 2019, theorem 8. The texts: Chinese slides on TensorFlow 2 (vanishing, exploding, deeper networks), a Chinese blog
# (lower risk of both).
