# %% [markdown]
# # 10. Depth: are vanishing and exploding gradients solved?
#
# Batch Normalization solves vanishing and exploding gradients, says text 003, and
# therefore allows deeper networks. Text 001 says that it lowers the risk of both. These
# are two claims in one sentence. We test each by itself.
#
# You need: lessons 7 and 9. Running time: 10 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import experiments, functional as F, initializers, optim, plotting, record
from minidl.data import split
from minidl.lessonkit import Lesson, written

lesson = Lesson("10_depth")
data = lesson.load_data()
(x_train, y_train), (x_test, y_test) = data

# %% [markdown]
# ## The networks
#
# 2, 8 or 32 hidden layers of 50 units, batches of 64. Sigmoid units get Xavier's
# (Glorot's) initial weights, ReLU units get He's, which were invented to keep deep
# plain networks in shape.
#
# Xavier's weights are made for an activation of slope 1, and a sigmoid's slope is at
# most $\frac{1}{4}$. So the plain sigmoid network gets a second chance, with weights
# five times as large: this is the care that lesson 7 asks for.

# %%
DEPTHS = [2, 8, 32]
BN, PLAIN, LARGE = "with BatchNorm", "without BatchNorm", "without, weights times 5"
SECOND = "BatchNorm in every second layer"
WEIGHTS = {"sigmoid": initializers.glorot_normal, "relu": initializers.he_normal,
           "linear": initializers.glorot_normal}


def five_times(shape, rng):
    return 5 * initializers.glorot_normal(shape, rng)


# %%
def hidden_layers(depth, units, activation, kind):
    layers = []
    for i in range(depth):
        weights = five_times if kind == LARGE else WEIGHTS[activation]
        layers.append(Dense(units, kernel_initializer=weights))
        if kind == BN or kind == SECOND and i % 2 == 1:
            layers.append(BatchNorm())
        layers.append(Activation(activation))
    return layers


def network(seed, depth, activation, kind):
    output = Dense(10, kernel_initializer=WEIGHTS[activation])
    return Sequential([*hidden_layers(depth, 50, activation, kind), output], seed=seed)


def gradients(log):
    """The gradient norms of all kernels, first layer to last: (steps, layers)."""
    return log.array("grad_norm", [name for name in log.parameters
                                   if name.endswith("kernel")])


# %% [markdown]
# ## Predict
#
# Before the first step, we compare the gradient of the first kernel with that of the
# last. Backpropagation multiplies by the slope of the activation once per layer. A
# sigmoid's slope is at most $\frac{1}{4}$. What do you expect of the ratio first / last
# in a network of 32 layers of sigmoids? Of ReLUs? And what does BatchNorm make of each?
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
                model = network(seed, depth, activation, name).build(784).train()
                with record(model) as log:
                    F.cross_entropy(model(x_train[:64]), y_train[:64]).backward()
                logs.append(gradients(log)[0])
            at_start[activation, name, depth] = np.array(logs)  # (seeds, layers)

ratio = {key: np.median(norms[:, 0] / norms[:, -1]) for key, norms in at_start.items()}
print("gradient of the first kernel / gradient of the last, before training, median of "
      "3 seeds")
print(" " * 27 + "".join(f"{depth:2} layers".rjust(12) for depth in DEPTHS))
for activation in ("sigmoid", "relu"):
    for name in (BN, PLAIN):
        print(f"{activation:8} {name:18}"
              + "".join(f"{ratio[activation, name, depth]:12.2g}" for depth in DEPTHS))

# %%
fig, axes = plotting.figure(1, 2, size=(13, 6), sharey=True, title="Gradient of the "
                            "first layer / of the last, with BatchNorm: "
                            f"{written(ratio['sigmoid', BN, 32])} (sigmoid), "
                            f"{written(ratio['relu', BN, 32], 2)} (ReLU)")
for ax, activation in zip(axes, ("sigmoid", "relu")):
    for i, name in enumerate((BN, PLAIN)):
        plotting.band(np.arange(1, 34), at_start[activation, name, 32], name, i, ax)
    ax.set(title=f"32 hidden layers, {activation}",
           xlabel="layer, from the input to the output", yscale="log",
           ylabel="norm of the kernel's gradient" if activation == "sigmoid" else "")
plotting.legend(axes[0])
lesson.show(fig, "gradients")

# %% [markdown]
# Sigmoids first. Xavier's weights keep the norm of a signal, the slope takes a factor
# of 4 from layer to layer, forward and backward: $4^{-32} \approx 5 \cdot 10^{-20}$.
# BatchNorm stretches the shrunken signal to standard deviation 1 again, and its
# backward pass multiplies the gradient by the same number. The vanishing is cured.
#
# Now look at ReLU. The plain network with He's weights needed no cure. With BatchNorm
# the gradient *explodes*: it grows from layer to layer on its way back to the input.
#
# ## Explain: a growth that can be computed
#
# Going back through a ReLU, half of the gradient's entries become 0: its squared norm
# is multiplied by $\frac{1}{2}$. Going forward, the ReLU leaves of the variance 1 only
# $\frac{\pi - 1}{2 \pi} \approx 0.34$ (lesson 9). The next BatchNorm stretches this to
# 1 again, and going back it divides the gradient's squared norm by it. Together, per
# layer,
#
# $\frac{1}{2} \cdot \frac{2 \pi}{\pi - 1} = \frac{\pi}{\pi - 1} \approx 1.47, \quad
# \sqrt{1.47} \approx 1.21 \text{ for the norm.}$
#
# That is for large batches. Yang et al. (2019) computed it for every batch size $B$, in
# wide networks with random weights (their theorem 8). With linear layers in place of
# the ReLUs the factor of the squared norm is $\frac{B-2}{B-3}$. A larger or smaller
# scale of the weights changes nothing: BatchNorm removes it.
#
# We check it: 30 layers of 256 units, a random batch, a random gradient at the end.
# Predict: will the growth be smaller or larger with a smaller batch?


# %%
def growth_by_layer(seed, batch_size, activation, kind=BN):
    """The norm of the gradient at each Dense layer's output, relative to the last."""
    model = Sequential(hidden_layers(30, 256, activation, kind), seed=seed)
    model.build(256).train()
    rng = np.random.default_rng(seed)
    inputs, end = (rng.standard_normal((batch_size, 256), np.float32) for _ in range(2))
    with record(model) as log:
        (model(inputs) * end).sum().backward()
    norms = log.array("grad_norm", [name for name in log.layers
                                    if name.startswith("dense")])[0]
    return norms / norms[-1]


def theory(batch_size, activation):
    """The factor for the norm, per layer: Yang et al. 2019, theorem 8."""
    if activation == "linear":
        return np.sqrt((batch_size - 2) / (batch_size - 3))
    c = -1 / (batch_size - 1)  # the cosine of the angle between two normalised samples
    j0 = (np.pi - np.arccos(c)) / np.pi
    j1 = (np.sqrt(1 - c ** 2) + (np.pi - np.arccos(c)) * c) / np.pi
    return np.sqrt(((batch_size - 1 + j0) / (1 - j1) - 1) / (batch_size - 3))


# %%
LIMIT = np.sqrt(np.pi / (np.pi - 1))
simulated, growth = {}, {}
print("\ngrowth of the gradient's norm per layer (layers 5 to 25, median of 3 seeds)")
for activation in ("relu", "linear"):
    for batch_size in (16, 64) if activation == "relu" else (16,):
        norms = np.array([growth_by_layer(seed, batch_size, activation)
                          for seed in SEEDS])
        simulated[activation, batch_size] = norms
        per_layer = (norms[:, 4] / norms[:, 24]) ** (1 / 20)
        growth[activation, batch_size] = np.median(per_layer)
        print(f"{activation:6} B = {batch_size}: {growth[activation, batch_size]:.4f}, "
              f"theory {theory(batch_size, activation):.4f}")
print(f"theory for ReLU and large B: {LIMIT:.4f}")
plain = np.array([growth_by_layer(seed, 64, "relu", PLAIN) for seed in SEEDS])

# %%
fig, ax = plotting.figure(size=(12, 6.5), title="ReLU and BatchNorm, B = 64: "
                          f"{growth['relu', 64]:.2f} times per layer, "
                          f"{written(np.median(simulated['relu', 64][:, 0]), 2)} "
                          "times in all")
layers = np.arange(1, 31)
for i, (norms, label) in enumerate([(simulated["relu", 64], "ReLU + BN, B = 64"),
                                    (plain, "ReLU, no BN"),
                                    (simulated["relu", 16], "ReLU + BN, B = 16"),
                                    (simulated["linear", 16], "linear + BN, B = 16")]):
    plotting.band(layers, norms, label, i, ax)
for activation, batch_size in (("relu", 64), ("relu", 16), ("linear", 16)):
    ax.plot(layers, theory(batch_size, activation) ** (30 - layers), color="black",
            linewidth=1, label="theory" if activation == "linear" else None)
ax.set(xlabel="layer, from the input to the output",
       ylabel="norm of the gradient,\nrelative to the last layer", yscale="log")
plotting.legend(ax)
lesson.show(fig, "growth")

# %% [markdown]
# ## Does it matter for learning?
#
# We train all networks for 100 steps. Each may choose the best of three or more
# learning rates, by its accuracy on a tenth of the training images that is held out.
# They are a factor of 3 apart and suit its depth: where the best one was the first or
# the last, we moved the grid until it was not. The two networks of 32 ReLU layers need
# 400 steps to differ, so we chose their rates beforehand, on the same kind of images.
# Predict: at which depth does each of the five kinds fail?

# %%
STEPS = 100
RATES = {("sigmoid", BN): {2: [0.1, 0.3, 1, 3, 10], 8: [0.03, 0.1, 0.3, 1],
                           32: [0.03, 0.1, 0.3]},
         ("sigmoid", PLAIN): {2: [0.3, 1, 3, 10], 8: [0.3, 1, 3], 32: [0.3, 1, 3]},
         ("sigmoid", LARGE): {2: [0.3, 1, 3], 8: [0.03, 0.1, 0.3, 1, 3],
                              32: [0.3, 1, 3]},
         ("relu", BN): {2: [0.1, 0.3, 1, 3], 8: [0.1, 0.3, 1, 3]},
         ("relu", PLAIN): {2: [0.03, 0.1, 0.3, 1], 8: [0.01, 0.03, 0.1, 0.3]}}
# 32 layers of ReLUs learn slowly: the best after 400 steps on images held out, of 0.03
# to 3 and of 0.003 to 0.1; exercise 6 repeats the search
RATES_RELU_32 = {BN: 1.0, PLAIN: 0.01}
part, held_out = split(*data[0], share=0.1, seed=lesson.seed)


def train(activation, kind, depth, lr, seed):
    """The accuracy on the images held out and on the test images."""
    model = network(seed, depth, activation, kind)
    run = experiments.run(model, (part, held_out), optimizer=optim.SGD(lr=lr),
                          steps=STEPS, batch_size=64, eval_steps=[STEPS])
    if run.diverged_at is not None:
        return 0.1, 0.1
    return run.accuracy[-1], np.mean(model.predict(x_test).argmax(axis=1) == y_test)


# %%
def choose_and_train(activation, kind, depth):
    """The best learning rate, by one seed, and the test accuracies of two seeds."""
    rates = RATES[activation, kind][depth]
    tried = {lr: train(activation, kind, depth, lr, lesson.seeds(2)[0]) for lr in rates}
    scores = [score for score, _ in tried.values()]
    if max(scores) < 0.2:  # no rate taught it anything, so there is no best one
        return rates[1], np.array([tried[rates[1]][1]])
    lr = experiments.best(rates, scores)
    again = train(activation, kind, depth, lr, lesson.seeds(2)[1])
    return lr, np.array([tried[lr][1], again[1]])


def follow(activation, depth, kind, lr, seed, sets=data):
    """The accuracy on the second of the sets after every 100 of 400 steps."""
    run = experiments.run(network(seed, depth, activation, kind), sets,
                          optimizer=optim.SGD(lr=lr), steps=400, batch_size=64,
                          eval_steps=range(100, 401, 100))
    return np.nan_to_num(run.accuracy, nan=0.1)  # diverged: guessing


# %%
accuracy, chosen = {}, {}
for (activation, kind), by_depth in RATES.items():
    for depth in by_depth:
        key = activation, kind, depth
        chosen[key], accuracy[key] = choose_and_train(*key)
longer = {}
for kind, lr in RATES_RELU_32.items():
    key = "relu", kind, 32
    longer[key] = np.array([follow("relu", 32, kind, lr, seed)
                            for seed in lesson.seeds(2)])
    chosen[key], accuracy[key] = lr, longer[key][:, STEPS // 100 - 1]

print(f"\ntest accuracy after {STEPS} steps, mean of 2 seeds (and the learning rate)")
print(" " * 33 + "".join(f"{depth:2} layers".rjust(15) for depth in DEPTHS))
for activation, kind in RATES:
    keys = [(activation, kind, depth) for depth in DEPTHS]
    row = [f"{accuracy[key].mean():.3f} ({chosen[key]:g})" for key in keys]
    print(f"{activation:8} {kind:24}" + "".join(text.rjust(15) for text in row))

# %%
deepest = {key: f"{accuracy[(*key, 32)].mean():.0%}" for key in RATES}
fig, axes = plotting.figure(1, 2, sharey=True, size=(14, 6.2), title="32 layers, with "
                            "and without BatchNorm: sigmoids "
                            f"{deepest['sigmoid', BN]} and "
                            f"{deepest['sigmoid', LARGE]}, ReLUs "
                            f"{deepest['relu', BN]} and {deepest['relu', PLAIN]}")
for activation, kind in RATES:
    ax = axes[int(activation == "relu")]
    # one seed where nothing was learned
    values = [np.resize(accuracy[activation, kind, depth], 2) for depth in DEPTHS]
    plotting.band(DEPTHS, np.transpose(values), kind, (BN, PLAIN, LARGE).index(kind),
                  ax)
    ax.set(title=activation, xscale="log", ylim=(0, 1), xlabel="hidden layers")
    ax.set_xticks(DEPTHS, labels=DEPTHS)
    ax.minorticks_off()
axes[0].set_ylabel(f"test accuracy after {STEPS} steps")
plotting.legend(axes[0])
lesson.show(fig, "accuracy")

# %% [markdown]
# Two layers of sigmoids need no BatchNorm, only a larger learning rate than one would
# expect. Eight layers do not learn with Xavier's weights at any rate; with weights five
# times as large they begin to. With 32 layers of ReLUs both networks learn badly. But
# 100 steps are one place on a curve. We look at these two cases for longer.
#
# Beside the eight layers stands a network that tests a sentence of text 003, to
# consider normalising "after each transformation": BatchNorm in every second layer.

# %%
# with large weights 100 steps are too few to choose a rate by
rates = [0.1, 0.3, 1, 3]
scores = [follow("sigmoid", 8, LARGE, lr, lesson.seeds(1)[0], (part, held_out))[-1]
          for lr in rates]
large_rate = experiments.best(rates, scores)
for kind in (BN, LARGE, SECOND):
    lr = large_rate if kind == LARGE else chosen["sigmoid", BN, 8]
    longer["sigmoid", kind, 8] = np.array([follow("sigmoid", 8, kind, lr, seed)
                                           for seed in lesson.seeds(2)])
final = {key: values[:, -1].mean() for key, values in longer.items()}

# %%
fig, axes = plotting.figure(1, 2, sharey=True, size=(14, 6.5), title="400 steps: 8 "
                            f"sigmoid layers {final['sigmoid', BN, 8]:.0%} with "
                            f"BatchNorm, {final['sigmoid', LARGE, 8]:.0%} with larger "
                            f"weights;\n32 ReLU layers {final['relu', BN, 32]:.0%} "
                            f"with, {final['relu', PLAIN, 32]:.0%} without")
for (activation, kind, depth), values in longer.items():
    ax = axes[int(activation == "relu")]
    look = (BN, PLAIN, LARGE, SECOND).index(kind)
    plotting.band(np.arange(100, 401, 100), values, kind, look, ax)
    ax.set(title=f"{depth} layers, {activation}", xlabel="training step", ylim=(0, 1))
axes[0].set_ylabel("test accuracy")
plotting.legend(axes[0])
lesson.show(fig, "longer")

# %% [markdown]
# So the vanishing gradient at 8 layers has a cheaper cure than BatchNorm, but one that
# works more slowly and less reliably. At 32 layers a factor of 5 no longer suffices:
# whatever a layer loses is lost 32 times over, therefore the factor would have to be
# met far more exactly (exercise 3), while BatchNorm adjusts it in every step. Nor does
# BatchNorm have to stand after each transformation, as the curve of every second layer
# shows.
#
# With ReLUs BatchNorm helps at 8 layers. At 32 layers both networks learn badly, and
# which one is ahead depends on the seed and on when we stop. Does the explosion last?
# Yang et al. report that networks with BatchNorm recover from it after the first steps.
# We train the deep ReLU network at a smaller and a larger rate and look on.

# %%
after, recovery = {}, {}
for lr in (0.03, 0.3):
    logs = []
    for seed in SEEDS:
        model = network(seed, 32, "relu", BN)
        with record(model, every=5) as log:
            experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=21,
                            batch_size=64)
        logs.append(log)
    norms = np.array([gradients(log) for log in logs])
    # units that all died have no gradient
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = norms[..., 0] / norms[..., -1]
    after[lr] = dict(zip(logs[0].steps, np.median(ratios, axis=0)))
    weights = np.median([log["dense.kernel", "norm"] for log in logs], axis=0)
    print(f"rate {lr}, median of 3 seeds: gradient first / last {after[lr][0]:.0f}, "
          f"after 5 steps {after[lr][5]:.2g}, after 20 {after[lr][20]:.2g}; norm of "
          f"the first kernel {weights[0]:.3g}, after 5 steps {weights[1]:.3g}")
    recovery[lr] = logs[0].steps, ratios

# %%
fig, ax = plotting.figure(size=(12, 6))
for i, (lr, (steps, ratios)) in enumerate(recovery.items()):
    plotting.band(steps, ratios, f"32 x (ReLU + BN), rate {lr}", (0, 2)[i], ax)
fig.suptitle(f"At rate 0.03 the ratio falls from {written(after[0.03][0])} to "
             f"{written(after[0.03][20])} in 20 steps: less, not over", fontsize=18,
             fontweight="bold")
ax.axhline(1, color="0.4", linewidth=1.2, linestyle=":")
ax.set(xlabel="training step",
       ylabel="gradient of the first kernel /\ngradient of the last", yscale="log")
plotting.plain_ticks(ax.yaxis)
plotting.legend(ax)
lesson.show(fig, "recovery")

# %% [markdown]
# The explosion damps itself: large gradients make the weights of the first layers
# large, and in front of a BatchNorm larger weights get smaller gradients (lesson 9).
# Yet the network learns slowly. We have measured an explosion and a failure; that the
# one is the cause of the other we have not shown.
#
# What we may say: BatchNorm cures vanishing gradients, and therefore deep networks of
# sigmoids learn; up to eight layers well-chosen weights do much of that, too. It does
# not cure exploding gradients: in deep ReLU networks it creates them, where the plain
# network with He's weights had none.

# %%
print()
lesson.check("vanishing: sigmoid, 8 layers, without BatchNorm, gradient first / last",
             ratio["sigmoid", PLAIN, 8], at_most=1e-3, claim=False)
for depth in (8, 32):
    lesson.check(f"vanishing: sigmoid, {depth} layers, with BatchNorm, powers of ten "
                 "between first and last", abs(np.log10(ratio["sigmoid", BN, depth])),
                 at_most=1)
lesson.check("vanishing: sigmoid, 2 layers, accuracy without BatchNorm",
             accuracy["sigmoid", PLAIN, 2].mean(), at_least=0.6, on_default_data=True,
             claim=False)
lesson.check("vanishing: sigmoid, 8 layers, accuracy without BatchNorm",
             accuracy["sigmoid", PLAIN, 8].mean(), at_most=0.2, claim=False)
lesson.check("the same with weights times 5, 400 steps", final["sigmoid", LARGE, 8],
             at_least=0.4, on_default_data=True, claim=False)
lesson.check("vanishing: sigmoid, 8 layers, accuracy with BatchNorm",
             accuracy["sigmoid", BN, 8].mean(), at_least=0.7)
lesson.check("vanishing: sigmoid, 32 layers, accuracy with BatchNorm",
             accuracy["sigmoid", BN, 32].mean(), at_least=0.5)

# %%
lesson.check(f"exploding: ReLU, B = 64, growth per layer, distance from {LIMIT:.4f}",
             abs(growth["relu", 64] - LIMIT), at_most=0.06)
lesson.check("exploding: ReLU, B = 64, growth over 30 layers",
             np.median(simulated["relu", 64][:, 0]), at_least=50)
lesson.check("exploding: ReLU, without BatchNorm, growth over 30 layers",
             np.median(plain[:, 0]), at_most=5, claim=False)
lesson.check("exploding: ReLU, 32 layers on images, gradient first / last with "
             "BatchNorm, over that without",
             ratio["relu", BN, 32] / ratio["relu", PLAIN, 32], at_least=20)
lesson.check("recovery: the same network at rate 0.03, first / last after 20 steps, "
             "over that before", after[0.03][20] / after[0.03][0], at_most=0.1,
             on_default_data=True, claim=False)
lesson.check("8 sigmoid layers, 400 steps: accuracy with BatchNorm in every second "
             "layer", final["sigmoid", SECOND, 8], at_least=0.7, on_default_data=True)
difference = longer["relu", BN, 32][:, -1] - longer["relu", PLAIN, 32][:, -1]
print(f"reported, 32 ReLU layers, 400 steps: accuracy with - without BatchNorm "
      f"{experiments.paired_difference(difference, 0 * difference)}")
lesson.check("depth: ReLU, 32 layers, 400 steps, accuracy with - without BatchNorm",
             difference.mean(), at_most=0.2, on_default_data=True, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. "BatchNorm solves vanishing and exploding gradients." What is true at the start
# of training?**
#
# - A: Both are solved.
# - B: Vanishing is; in deep ReLU networks BatchNorm itself makes gradients explode.
# - C: Exploding is; vanishing gradients need another activation.
# - D: Neither: gradients do not depend on BatchNorm.
#
# **2. Eight sigmoid layers without BatchNorm do not learn with Xavier's weights. What
# follows?**
#
# - A: Only BatchNorm can train them.
# - B: The sigmoid cannot be trained at this depth.
# - C: The learning rate was too small.
# - D: Try weights that make up for the sigmoid's slope of at most 1/4 before you
#   conclude anything.
#
# <details><summary>Answers</summary>
#
# 1 B. At 32 sigmoid layers BatchNorm brings the ratio of first to last gradient near 1;
# at 32 ReLU layers it raises it above 1,000. A is text 003's sentence. C has the two
# exchanged. D contradicts the first figure.
#
# 2 D. With weights five times as large, eight layers learn. A would be text 003's
# conclusion, and B the conclusion from one setting. C was tried: no rate of the grid
# helps with Xavier's weights.
#
# </details>
#
# ## Try
#
# 1. Easy: what does `theory(4, "relu")` give, squared? Why can a batch of 3 not work
#    for linear layers?
# 2. Easy: put tanh in place of ReLU in the simulation (with Xavier's weights). How
#    large is the growth now?
# 3. Medium: `five_times` multiplies by 5. Try 3, 4, 6 and 8 at 8 layers, and at 32. How
#    exactly must the factor be met?
# 4. Medium: write a Module with a shortcut, `forward(x) = x + block(x)`, and stack 16
#    of them. What is left of the growth?
# 5. Research: why do 32 layers of ReLU and BatchNorm learn so slowly, if not for the
#    gradient? Compare the last layer's outputs for two different images before
#    training, at 2 and at 32 layers.
# 6. Research: repeat the search for the learning rates of the two networks of 32 ReLU
#    layers, with three seeds. How sure is each choice?
#
# While `python -m minidl race` runs:
# [8 layers of sigmoids](http://127.0.0.1:8107/#preset=10),
# [32 layers of ReLUs](http://127.0.0.1:8107/#preset=10b).
#
# Sources: G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein and S. Schoenholz, A Mean
# Field Theory of Batch Normalization, 2019, theorem 8. Text 003 (vanishing, exploding,
# deeper networks, "after each transformation"), text 001 (lower risk of both).
