# %% [markdown]
# # 8. Learning-rate tolerance: how large may the learning rate be?
#
# "Batch Normalization allows higher learning rates." That is easy to say and easy to measure: train
# the same network at many learning rates and look which of them still work.
#
# You need: lesson 7. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, optim, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("08_learning_rate_tolerance")
data = lesson.load_data()

# %% [markdown]
# ## The networks
#
# Hidden layers of 64 ReLU units with He's initial weights, three of them or six, batches of 64. These weights
# are chosen so that the plain network starts well: it is no straw man.


# %%
def network(seed, depth, batch_norm):
    layers = []
    for _ in range(depth):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm())
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)


def pair(depth):
    return {"with BatchNorm": lambda seed: network(seed, depth, batch_norm=True),
            "without BatchNorm": lambda seed: network(seed, depth, batch_norm=False)}


BN, PLAIN = "with BatchNorm", "without BatchNorm"
RATES = 10 ** np.arange(-1.5, 1.51, 0.25)  # 13 rates from 0.03 to 32, four to a decade
WORKS = 0.7  # a rate works if the mean loss of the last 20 of 120 steps is below this; guessing gives ln 10 = 2.3

# %% [markdown]
# ## Predict
#
# A rate *works* if, after 120 steps, the loss is below 0.7. What is the largest rate that works for
# three layers without BatchNorm? With it? Does depth matter? Write down four numbers.
#
# ## Run

# %%
results = {depth: experiments.lr_range(pair(depth), data, RATES, steps=120, batch_size=64, seeds=lesson.seeds(3))
           for depth in (3, 6)}
for depth, result in results.items():
    for name in (BN, PLAIN):
        largest = result.largest(name, below=WORKS)
        print(f"{depth} hidden layers, {name:17}: largest rate that works, by seed: "
              + ", ".join(f"{rate:.2f}" if rate else "none" for rate in largest))

# %% [markdown]
# A cross marks a rate at which at least one run *diverged*: its loss became infinite. That is not the only way
# to fail. Many runs above the dotted line are still finite: their units died, or their loss stays near ln 10.

# %%
def times_larger(depth):
    """By how much BatchNorm multiplies the largest working rate; where none works, the smallest one tried counts."""
    with_bn, without = (results[depth].largest(name, below=WORKS) for name in (BN, PLAIN))
    return np.median(with_bn / np.maximum(without, RATES[0]))


fig, axes = plotting.figure(1, 2, sharey=True, title="BatchNorm multiplies the largest rate that works by "
                            + " and ".join(f"{times_larger(depth):.0f} ({depth} layers)" for depth in results))
for ax, (depth, result) in zip(axes, results.items()):
    plotting.lr_range(result, below=WORKS, ax=ax)
    ax.set_title(f"{depth} hidden layers")
axes[1].set_ylabel("")
lesson.show(fig, "final_loss")

# %% [markdown]
# ## Explain: what the large step does
#
# A step at a rate that is too large makes the weights of every layer larger. Without BatchNorm the layers
# multiply: what they send on grows with depth, the next gradient grows with it, and the next step
# is larger still (Bjorck et al. 2018). With BatchNorm each layer's input is brought back to scale.
#
# To see it happen we take the largest rate at which six layers with BatchNorm still work and stop after three
# steps. Then we send the test images through and note the standard deviation of what reaches each activation.

# %%
LR, STEPS = np.median(results[6].largest(BN, below=WORKS)) or 1.0, 3


def scales_by_layer(model, x):
    """The standard deviation of the input of each activation, and of the logits, with the statistics of this batch."""
    scales = []
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in model.layers:
            if isinstance(layer, Activation):
                scales.append(np.std(x.numpy(), dtype=float))
            x = layer(x)
        return [*scales, np.std(x.numpy(), dtype=float)]


scales = {name: [] for name in (BN, PLAIN)}
for name, build in pair(6).items():
    for seed in lesson.seeds(3):
        model = build(seed)
        experiments.run(model, data, optimizer=optim.SGD(lr=LR), steps=STEPS, batch_size=64)
        scales[name].append(scales_by_layer(model.train(), data[1][0]))
    print(f"{name:17}: scale by layer after {STEPS} steps at rate {LR:.2g}, median: "
          + ", ".join(f"{s:.2g}" for s in np.median(scales[name], axis=0)))

# %%
logits = {name: np.median(scales[name], axis=0)[-1] for name in (BN, PLAIN)}
fig, ax = plotting.figure(title=f"After {STEPS} steps at rate {LR:.2g} the logits' scale is {logits[BN]:.0g} with BatchNorm, "
                                f"{logits[PLAIN]:.0e} without", size=(12, 6))
for i, name in enumerate((BN, PLAIN)):
    plotting.band(np.arange(1, 8), scales[name], name, i, ax)
ax.set(xlabel="hidden layer", ylabel="standard deviation\nbefore the activation", yscale="log", xticks=range(1, 8),
       xticklabels=[*map(str, range(1, 7)), "logits"])
plotting.legend(ax)
lesson.show(fig, "scale_by_layer")

# %% [markdown]
# ## The control: a small rate
#
# Does BatchNorm help in itself, or by making large rates possible? If it is the second, then at a *small* rate,
# the same for both, it should change little. Beside it, for scale, the same at rate 1. Predict first.

# %%
difference = {}
for depth in (3, 6):
    for lr in (0.01, 1.0):
        control = experiments.compare(pair(depth), data, lr=lr, steps=200, batch_size=64, seeds=lesson.seeds(3),
                                      eval_steps=[200])
        # A run that diverged has no accuracy (NaN): its network is left guessing, one in ten.
        accuracy = {name: np.nan_to_num(control.accuracy_at(name, 200), nan=0.1).mean() for name in (BN, PLAIN)}
        difference[depth, lr] = accuracy[BN] - accuracy[PLAIN]
        print(f"{depth} hidden layers, rate {lr:4}, 200 steps: accuracy {accuracy[BN]:.3f} with BatchNorm, "
              f"{accuracy[PLAIN]:.3f} without")

# %% [markdown]
# At the small rate BatchNorm does help, by some hundredths. At rate 1 it decides whether anything is learnt at all.
# So most of the benefit comes *through* the learning rate that it makes possible, as Bjorck et al. found.
# The bound of the CHECK is 0.15: over twenty base seeds we measured at most 0.12.

# %%
print()
for depth, required in ((3, 4), (6, 8)):
    lesson.check(f"{depth} layers: largest rate with / without BatchNorm", times_larger(depth), at_least=required)
for depth in (3, 6):
    lesson.check(f"{depth} layers, control: size of the accuracy difference at rate 0.01", abs(difference[depth, 0.01]),
                 at_most=0.15, on_default_data=True, claim=False)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: put a BatchNorm on the logits as well. Does the right end of the curve move?
# 2. Easy: give the optimizer `momentum=0.9`. Do both limits shrink by the same factor?
# 3. Medium: define "diverged" in three ways (infinite loss, loss above ln 10, never below 0.7). Do they agree?
# 4. Medium: replace SGD by Adam. What is left of the difference?
# 5. Research: above the largest rate the network with BatchNorm fails too. Which layer fails first?
#
# While `python -m minidl race` runs: [rate 3, live](http://127.0.0.1:8107/#preset=8).
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 3.3 and 4.2.2. N. Bjorck, C. Gomes, B. Selman and K. Weinberger,
# Understanding Batch Normalization, 2018.
