# %% [markdown]
# # 13. Before or after the activation: where does BatchNorm go?
#
# The texts disagree. The paper puts BatchNorm *before* the activation, and so do the programs that most tutorials
# print. Some texts add that after the activation "may work better". Others simply define BatchNorm as something that
# is done after the activation, as if there were no question. So who is right?
#
# You need: lesson 7. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("13_before_or_after")
data = lesson.load_data()

# %% [markdown]
# ## Two arguments
#
# *Before*, $\text{act}(\text{BN}(Wu))$: $Wu + b$, a sum of many terms, "is more likely to have a symmetric, non-sparse
# distribution, that is 'more Gaussian'", so its mean and variance describe it well (Ioffe and Szegedy 2015, section 3.2).
#
# *After*, $\text{BN}(\text{act}(Wu + b))$: what counts is what the *next layer receives*, and a layer learns best from inputs
# of mean 0 and equal variance (LeCun et al. 1998). An activation after the BatchNorm spoils that: a ReLU's output is never
# negative.
#
# Both sound right. So we measure: three hidden layers of 64 units, batches of 64, learning rate 0.3, with ReLU and with
# sigmoid. All three networks of a comparison get the same seed, so the same weights and batches. (For the network
# without BatchNorm, 0.3 is a large rate; at small rates its gap to the others is smaller, as lesson 8 shows.)

# %%
BEFORE, NONE, AFTER = "BatchNorm before", "no BatchNorm", "BatchNorm after"
INITIALIZERS = {"relu": "he_normal", "sigmoid": "glorot_uniform"}


def network(seed, activation, place):
    layers = []
    for _ in range(3):
        layers.append(Dense(64, kernel_initializer=INITIALIZERS[activation]))
        if place == BEFORE:
            layers.append(BatchNorm())
        layers.append(Activation(activation))
        if place == AFTER:
            layers.append(BatchNorm())
    return Sequential([*layers, Dense(10)], seed=seed)


def builders(activation, places=(BEFORE, NONE, AFTER)):
    return {place: lambda seed, place=place: network(seed, activation, place) for place in places}


# %% [markdown]
# ## Predict
#
# For ReLU and for sigmoid: which of the three is ahead after 50 steps, which after 400, and by how much?
#
# ## Run

# %%
results = {activation: experiments.compare(builders(activation), data, lr=0.3, steps=400, batch_size=64, seeds=lesson.seeds(3),
                                           eval_steps=[0, 10, 25, 50, 75, 100, 150, 200, 250, 300, 350, 400])
           for activation in INITIALIZERS}
for activation, result in results.items():
    print(f"\n{activation}, learning rate 0.3, median of 3 seeds")
    print(result.table(0.85, at=(50, 100, 200, 400)))


def after_minus_before(result, step):
    """The difference in test accuracy, mean over the seeds; NaN if a run diverged."""
    return np.mean(result.accuracy_at(AFTER, step) - result.accuracy_at(BEFORE, step))


lead = {activation: after_minus_before(result, 400) for activation, result in results.items()}

# %%
fig, axes = plotting.figure(1, 2, sharey=True, size=(13, 6), title="In the end before and after differ by "
                            f"{abs(lead['relu']):.3f} (ReLU) and {abs(lead['sigmoid']):.3f} (sigmoid)")
for ax, (activation, result) in zip(axes, results.items()):
    plotting.compare(result, ax=ax)
    ax.set_title(activation)
axes[1].set_ylabel("")
lesson.show(fig, "accuracy")

# %% [markdown]
# ## What the next layer receives
#
# We look at the input of the third Dense layer, for 500 test images before training, in training mode. Predict the
# shape of its distribution for the three networks.


# %%
def received(model, images):
    """What the third Dense layer gets."""
    dense = [layer for layer in model.layers if isinstance(layer, Dense)]
    x = images
    for layer in model.layers[:model.layers.index(dense[2])]:
        x = layer(x)
    return x.numpy()


images, arrived = data[1][0][:500], {}
for activation in INITIALIZERS:
    print(f"\n{activation}: input of the third Dense layer, before training")
    for place, build in builders(activation).items():
        x = arrived[activation, place] = received(build(lesson.seed).build(784).train(), images)
        mean, std = x.mean(axis=0), x.std(axis=0)
        print(f"{place:16}: a unit's mean is {mean.min():+.2f} to {mean.max():+.2f}, its standard deviation {std.min():.2f} to "
              f"{std.max():.2f}; {np.mean(x == 0):.0%} of all inputs are 0")

# %%
means = {key: x.mean() for key, x in arrived.items()}
fig, axes = plotting.figure(3, 2, size=(13, 9), sharex=True, sharey=True,
                            title=f"What the next layer receives: mean {means['relu', BEFORE]:.2f} with BatchNorm before "
                                  f"the ReLU, {abs(means['relu', AFTER]):.2f} after")
bins = np.arange(-3.05, 4.1, 0.1)
for column, activation in zip(axes.T, INITIALIZERS):
    for i, (ax, place) in enumerate(zip(column, (BEFORE, NONE, AFTER))):
        x = arrived[activation, place].ravel()
        ax.hist(x, bins, weights=np.full(x.size, 100 / x.size), color=plotting.LOOKS[i][0], log=True)
        ax.axvline(x.mean(), color="black", linestyle="--", linewidth=2)
        ax.set(title=f"{activation}, {place}", ylim=(0.05, 150))
    ax.set_xlabel("input of the third Dense layer (dashed: the mean)")
axes[0, 0].set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
axes[1, 0].set_ylabel("inputs per bin of width 0.1 (%)")
lesson.show(fig, "received")

# %% [markdown]
# ## Another learning rate
#
# A comparison at one learning rate is one comparison. Here are ten times less and ten times more. Predict: does the
# order stay the same?

# %%
RATES = (0.03, 0.3, 3.0)
ahead = {}
for activation in INITIALIZERS:
    print(f"\n{activation}: mean test accuracy after 200 steps (nan: a run diverged)")
    for lr in RATES:
        result = results[activation] if lr == 0.3 else experiments.compare(
            builders(activation, (BEFORE, AFTER)), data, lr=lr, steps=200, batch_size=64, seeds=lesson.seeds(2),
            eval_steps=[200])
        ahead[activation, lr] = after_minus_before(result, 200)
        before, after = (result.accuracy_at(place, 200).mean() for place in (BEFORE, AFTER))
        print(f"rate {lr:4}: {before:.3f} before, {after:.3f} after")

# %%
def signed(values):
    return ", ".join("diverged" if np.isnan(value) else f"{value:+.2f}" for value in values)


rows = {activation: np.array([ahead[activation, lr] for lr in RATES]) for activation in INITIALIZERS}
bottom = -max(0.1, 1.2 * np.nan_to_num(np.abs(list(rows.values()))).max())
fig, ax = plotting.figure(title=f"After minus before: {signed(rows['relu'])} (ReLU); {signed(rows['sigmoid'])} (sigmoid)",
                          size=(13, 6))
for i, (activation, row) in enumerate(rows.items()):
    color, line = plotting.LOOKS[3 + i]
    ax.plot(RATES, row, linestyle=line, marker="os"[i], markersize=12, color=color, linewidth=3, label=activation)
    died = np.isnan(row)
    if died.any():
        ax.plot(np.array(RATES)[died], np.full(died.sum(), 0.93 * bottom), "x", color=color, markersize=14, markeredgewidth=4,
                label=f"{activation}: a run diverged")
ax.axhline(0, color="0.3", linewidth=1.5)
ax.set(xlabel="learning rate", ylabel="test accuracy at step 200,\nafter minus before", xscale="log", xticks=RATES,
       xticklabels=RATES, xlim=(0.02, 4.5), ylim=(bottom, -bottom))
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "by_rate")

# %% [markdown]
# ## What others have measured
#
# A careful public comparison on ImageNet (images of 128 pixels, ReLU, one number for each network) is Mishkin's
# caffenet-benchmark. It has results of both signs:

# %%
PUBLISHED = [("CaffeNet, with gamma and beta", 0.471, 0.478, 0.493),
             ("CaffeNet, without them", 0.471, 0.474, 0.499),
             ("GoogLeNet, LSUV initialisation", 0.619, 0.603, 0.596),
             ("GoogLeNet, orthogonal initialisation", 0.619, 0.607, 0.584)]
print(f"\n{'published accuracy on ImageNet':36}  no BN  before  after  after - before")
for name, none, before, after in PUBLISHED:
    print(f"{name:36}  {none:.3f}   {before:.3f}  {after:.3f}          {after - before:+.3f}")

# %% [markdown]
# (In the two GoogLeNet rows "before" has $\gamma$ and $\beta$, "after" has not. There the network without BatchNorm is
# the best of the three.)
#
# ## Explain
#
# Either place brings the gain that counts: early on, both are far ahead of the network without BatchNorm. Between them there
# is no winner for every activation, learning rate and network: our lines have both signs, and so has the published table.
#
# The distributions show what is traded. With BatchNorm before, each *activation* gets inputs on its scale: about half of the
# ReLUs work for each image, and a sigmoid's outputs spread over its range. With BatchNorm after, each *Dense layer* gets inputs
# of mean 0 and variance 1. Where its inputs would otherwise all be positive, with a mean well above their spread, as with the
# sigmoid, that is worth something at small rates. Why it does not survive the large rate is exercise 5.
#
# A practical difference: before the activation the Dense layer's bias is useless, for BatchNorm subtracts it again; after the
# activation it is not. And only before can BatchNorm be folded into the Dense layer before it, for fast inference.

# %%
print()
for activation, required in (("relu", 0.04), ("sigmoid", 0.4)):
    for place in (BEFORE, AFTER):
        gain = np.mean(results[activation].accuracy_at(place, 50) - results[activation].accuracy_at(NONE, 50))
        lesson.check(f"{activation}: mean accuracy at step 50, {place} - none", gain, at_least=required)
for activation in INITIALIZERS:
    largest = np.abs(arrived[activation, AFTER].mean(axis=0)).max()
    lesson.check(f"{activation}, BatchNorm after: largest |mean| of the next layer's inputs", largest, at_most=0.001)
for activation in INITIALIZERS:
    lesson.check(f"{activation}: mean accuracy at step 400, size of after - before", abs(lead[activation]), at_most=0.05,
                 claim=False)
for activation, result in results.items():
    by_seed = result.accuracy_at(AFTER, 400) - result.accuracy_at(BEFORE, 400)
    print(f"reported, {activation}: after - before at step 400 by seed " + ", ".join(f"{value:+.3f}" for value in by_seed))
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: put BatchNorm in *both* places. Does it help? What does the second one still have to do?
# 2. Easy: add a BatchNorm in front of the first Dense layer, on the pixels. What happens at the pixels that are always 0?
# 3. Medium: give the Dense layers `use_bias=False` in the networks "before" and "after". Which one notices?
# 4. Medium: try `"leaky_relu"` and `"tanh"`. Tanh outputs have mean near 0: do you expect after or before to gain?
# 5. Medium: at learning rate 3, which layer fails first with BatchNorm after the sigmoid? (`minidl.record` shows it.)
# 6. Research: the argument for *before* is that $Wu + b$ is close to Gaussian. Measure the skewness of each unit's $Wu + b$ and
#    $\text{act}(Wu + b)$ in the course of training. Does it change, and does it matter?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.2. Y. LeCun, L. Bottou, G. Orr and K.-R. Mueller, Efficient BackProp, 1998.
# The published table: D. Mishkin, github.com/ducha-aiki/caffenet-benchmark, file batchnorm.md; the project's report is
# D. Mishkin, N. Sergievskiy and J. Matas, Systematic evaluation of convolution neural network advances on the ImageNet, 2017.
