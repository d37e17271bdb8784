# %% [markdown]
# # 17. Ablation: which part does the work?
#
# BatchNorm subtracts a mean, divides by a standard deviation, multiplies by $\gamma$, adds $\beta$, and sends its gradient
# through all of it. To find out which part does the work, take the parts out one at a time, and measure.
# This is called an ablation. It is the last lesson, and you know enough to predict the outcome: that is the task.
#
# You need: the lessons before this one. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

from functools import partial

import numpy as np

from minidl import (Activation, BatchNorm, Dense, LayerNorm, Module, Parameter, Sequential, experiments, optim,
                    plotting, record)
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("17_ablation")
data = lesson.load_data()

# %% [markdown]
# ## Predict
#
# Three hidden layers of 64 ReLU units, with a layer between each Dense and its ReLU that is BatchNorm, or what is left of it:
#
# - *mean only*: $\gamma (x - \mu_B) + \beta$, and *variance only*: $\gamma \frac{x}{\sqrt{\sigma_B^2 + \epsilon}} + \beta$;
# - *constant statistics*: BatchNorm's output, but in the backward pass $\mu_B$ and $\sigma_B$ count as constants;
# - *no gamma*, *no beta*: $\gamma$ stays 1, or $\beta$ stays 0;
# - *LayerNorm*: the same formula, over the units of one image instead of the images of one unit;
# - *gamma, beta, output*: BatchNorm in full, but all hidden kernels and biases keep their random initial values, and only
#   $\gamma$, $\beta$ and the output layer learn; in *output*, the output layer alone.
#
# Each is trained at the learning rates 0.1, 0.3, 1 and 3. A rate *works* if 80 % of the test images are right after 120
# steps. Write down the largest rate that works, 0 if none does, in place of each None.

# %%
PREDICTION = {
    "no normalisation": None,
    "BatchNorm": None,
    "mean only": None,
    "variance only": None,
    "constant statistics": None,
    "no gamma": None,
    "no beta": None,
    "LayerNorm": None,
    "gamma, beta, output": None,
    "output": None,
}

# %% [markdown]
# ## The parts
#
# One class holds what the variants share: $\gamma$ and $\beta$, the statistics of the batch in training and their running
# averages in evaluation. The variants only say what they make of them.


# %%
class Ablated(Module):
    """gamma * normalized(x, mean, var) + beta; a subclass says what normalized is."""

    built = False

    def forward(self, x):
        if not self.built:
            units = x.shape[1]
            self.gamma, self.beta = Parameter(np.ones(units, np.float32)), Parameter(np.zeros(units, np.float32))
            self.running_mean, self.running_var = np.zeros(units, np.float32), np.ones(units, np.float32)
            self.built = True
        if self.training:
            mean, var = x.mean(axis=0), x.var(axis=0)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.numpy()
            self.running_var = 0.9 * self.running_var + 0.1 * var.numpy()
        else:
            mean, var = self.running_mean, self.running_var
        return self.gamma * self.normalized(x, mean, var) + self.beta


class MeanOnly(Ablated):
    def normalized(self, x, mean, var):
        return x - mean


class VarianceOnly(Ablated):
    def normalized(self, x, mean, var):
        return x / F.sqrt(var + 1e-5)


class ConstantStatistics(Ablated):
    def normalized(self, x, mean, var):
        if self.training:
            mean, var = mean.detach(), var.detach()  # the same numbers, but no gradient goes through them
        return (x - mean) / F.sqrt(var + 1e-5)


# %% [markdown]
# The others need no new class: a parameter whose `requires_grad` is False keeps its initial value.

# %%
VARIANTS = {  # name: the layer, and which parameters of the hidden layers are not trained
    "no normalisation": (None, ()),
    "BatchNorm": (BatchNorm, ()),
    "mean only": (MeanOnly, ()),
    "variance only": (VarianceOnly, ()),
    "constant statistics": (ConstantStatistics, ()),
    "no gamma": (BatchNorm, ("gamma",)),
    "no beta": (BatchNorm, ("beta",)),
    "LayerNorm": (LayerNorm, ()),
    "gamma, beta, output": (BatchNorm, ("kernel", "bias")),
    "output": (BatchNorm, ("kernel", "bias", "gamma", "beta")),
}
RATES, STEPS, WORKS = (0.1, 0.3, 1.0, 3.0), 120, 0.8


def network(variant, seed):
    norm, frozen = VARIANTS[variant]
    layers = []
    for _ in range(3):
        layers += [Dense(64, kernel_initializer="he_normal"), *([norm()] if norm else []), Activation("relu")]
    model = Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed).build(784)
    for layer in layers:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad = name not in frozen
    return model


# %% [markdown]
# ## Run
#
# All variants start from the same Dense weights and see the same batches. Three seeds; medians.

# %%
builders = {name: partial(network, name) for name in VARIANTS}
results = {lr: experiments.compare(builders, data, lr=lr, steps=STEPS, batch_size=64, seeds=lesson.seeds(3), eval_steps=[STEPS])
           for lr in RATES}
measured = np.array([[results[lr].accuracy_at(name, STEPS) for lr in RATES] for name in VARIANTS])  # variants, rates, seeds
diverged = np.isnan(measured).sum(axis=2)
# A run that diverged has no accuracy (NaN): its network is left guessing, one in ten.
accuracy = dict(zip(VARIANTS, np.median(np.nan_to_num(measured, nan=0.1), axis=2)))
loss = {name: [np.median([run.final_loss() for run in results[lr].runs[name]]) for lr in RATES] for name in VARIANTS}
largest = {name: max((lr for lr, a in zip(RATES, accuracy[name]) if a >= WORKS), default=0) for name in VARIANTS}
print(f"\n{'largest rate that works':23}  predicted  measured")
for name, predicted in PREDICTION.items():
    verdict = "" if predicted is None else "as predicted" if predicted == largest[name] else "a surprise"
    print(f"{name:23}  {'?' if predicted is None else predicted:>9}  {largest[name]:8}  {verdict}")
if None in PREDICTION.values():
    print("a ? is a prediction that you have not written down: fill in PREDICTION and run again")

# %%
either_alone = max(accuracy["mean only"][-1], accuracy["variance only"][-1])
fig, ax = plotting.figure(size=(12, 9), title=f"Rate 3: {accuracy['BatchNorm'][-1]:.0%} right with BatchNorm, "
                                              f"{either_alone:.0%} with the mean or the variance alone")
ax.imshow(list(accuracy.values()), vmin=0, vmax=1, cmap="cividis", aspect="auto")
for row, (name, values) in enumerate(accuracy.items()):
    for column, value in enumerate(values):
        ax.text(column, row, f"{value:.0%}" + " ×" * diverged[row, column], ha="center", va="center", fontsize=16,
                color="black" if value > 0.5 else "white")
ax.set(xticks=range(len(RATES)), xticklabels=RATES, yticks=range(len(VARIANTS)), yticklabels=VARIANTS,
       xlabel="learning rate", title=f"test accuracy after {STEPS} steps, median of 3 seeds; × for each run that diverged")
ax.grid(False)
lesson.show(fig, "heat_map")

# %% [markdown]
# ## The gradient through the statistics
#
# With constant statistics the forward pass is BatchNorm's, number for number, and yet at the small rates the network does
# worse than with no normalisation at all. The paper describes why (section 2). Adding a constant to a unit's bias changes
# nothing, as $\mu_B$ grows with it. A gradient that takes $\mu_B$ for a constant does not know this, and asks for
# the same useless step again and again. We look at the length of the biases of the first layer.

# %%
THREE = ("BatchNorm", "no normalisation", "constant statistics")
bias = {}
for name in THREE:
    model = network(name, lesson.seeds(1)[0])
    with record(model, every=5) as log:
        experiments.run(model, data, optimizer=optim.SGD(lr=0.1), steps=STEPS, batch_size=64)
    bias[name] = log["dense.bias", "norm"]
    print(f"{name:20}: norm of the biases of the first layer {bias[name][-1]:.1e} at the end")

worse = loss["constant statistics"][0] / loss["BatchNorm"][0]
fig, axes = plotting.figure(1, 2, title=f"Statistics taken for constants: at the rate 0.1 a loss {worse:.1f} times BatchNorm's")
at_small_rate = experiments.Comparison({name: results[0.1].runs[name] for name in THREE}, results[0.1].seeds)
plotting.compare(at_small_rate, "losses", ax=axes[0])
for i, name in enumerate(THREE):
    plotting.band(log.steps, [bias[name]], name, i, axes[1])
axes[1].set(xlabel="training step", ylabel="norm of the first biases")
lesson.show(fig, "constant_statistics")

# %% [markdown]
# ## Explain
#
# - *Both statistics are needed* for the largest rate. Up to there the mean alone does nearly everything, and more than the
#   variance alone. A likely reason: the mean alone leaves the scale free, and a large step makes weights and outputs
#   large. Dividing by $\sigma_B$ stops that (lesson 16), but without the subtraction a unit's mean may run away.
# - *The gradient must flow through them*. It takes out the steps that the normalisation would undo. (At the rate 0.1 a plain
#   network beats constant statistics too, so the CHECK of that loss claims nothing of BatchNorm.)
# - *$\gamma$ and $\beta$ matter little here*. For $\gamma$ that is no wonder: a ReLU passes a positive factor on, so the next
#   kernel can take it over. Yet trained alone, with the output layer, they make something of random features; Frankle,
#   Schwab and Morcos (2021) took this far with convolutional networks. Scaling and shifting helps without
#   normalisation too (run with MINIDL_BN=identity), so this CHECK claims nothing of BatchNorm either.
# - *LayerNorm* has the same formula and is another thing. "For each sample compute mean and variance", one
#   of the texts says; that sentence, read as it stands, describes LayerNorm.

# %%
print()
lesson.check("rate 3: accuracy of BatchNorm - the better of mean only and variance only",
             accuracy["BatchNorm"][-1] - either_alone, at_least=0.4)
lead = np.min(accuracy["BatchNorm"] - accuracy["constant statistics"])
lesson.check("accuracy of BatchNorm - constant statistics, the smallest over the four rates", lead, at_least=0.04)
lesson.check("rate 0.1: loss with constant statistics / with BatchNorm", worse, at_least=1.5, claim=False)
lesson.check("norm of the first biases with BatchNorm", bias["BatchNorm"][-1], at_most=1e-4)
change = np.max([np.abs(accuracy[name] - accuracy["BatchNorm"])[:3] for name in ("no gamma", "no beta")])
lesson.check("rates up to 1: largest change of accuracy without gamma or without beta", change, at_most=0.05, claim=False)
gain = accuracy["gamma, beta, output"].max() - accuracy["output"].max()
lesson.check("random kernels, best rate: accuracy gained by training gamma and beta", gain, at_least=0.04, claim=False)
lesson.finish()

# %% [markdown]
# ## The course in one table
#
# What became of the claims of the five texts that this course set out from.
#
# | claim | verdict | what we found |
# |---|---|---|
# | unscaled features make a valley of the loss | held | exactly so for least squares |
# | training is faster | held | the lead is early; given enough steps the plain network catches up |
# | larger learning rates work | held | and most of the benefit comes through them |
# | sigmoids do not saturate | held | whatever the size of the weights |
# | gradients do not vanish | held | deep sigmoid networks learn with it, and not without |
# | scale after every layer, not only the inputs | held | in training scale and shift of the inputs cancel exactly |
# | mean 0 and variance 1 | on a condition | the variance falls short by what $\epsilon$ adds |
# | initial weights matter less | on a condition | over many sizes; tiny ones meet $\epsilon$, huge ones hardly turn |
# | the gradient is steadier, the surface smoother | on a condition | for ReLU; a plateau is flat as well, and no help |
# | it regularises | on a condition | the noise is real and the smaller the batch, the stronger; a test gain is not certain |
# | averages serve at inference | on a condition | if they have caught up with the weights; test it |
# | $\gamma$ and $\beta$ can undo it | on a condition | true as algebra; here they are hardly needed |
# | after the activation is better | on a condition | it depends on the activation; either place beats none |
# | gradients do not explode | did not hold | at the start, deep ReLU networks with BatchNorm have exploding gradients |
# | it works by reducing internal covariate shift | did not hold | steadier inputs, yes; but fast learning does without them |
# | values become standard normal | did not hold | the mean and the variance change, the shape does not |
# | statistics are those of each sample | did not hold | of each feature, over the batch |
# | training leaves the output as it was | did not hold | only for one special $\gamma$ and $\beta$ |
# | the texts' own program shows the gain | did not hold | with Adam a net with one hidden layer hardly gains |
#
# And what the texts say little or nothing of: a batch of two is too small, the statistics must be part of the gradient, and
# the network in evaluation is not quite the one that was trained. If you keep one habit, let it be this course's:
# predict, measure with several seeds against a tuned rival, and make sure that your test can fail.

# %% [markdown]
# ## Try
#
# 1. Easy: add a variant without $\epsilon$. At which rate does it matter?
# 2. Easy: predict and measure the rates 0.01 and 0.03. What is left of the differences?
# 3. Medium: is the mean enough if the gradient through it is cut? Write the variant and predict it first.
# 4. Medium: normalise half the way: divide by `var ** 0.25`. Which property of lesson 16 is lost, and does it show?
# 5. Medium: take the biases out of the Dense layers (`use_bias=False`). Do constant statistics work now? What still drifts?
# 6. Research: LayerNorm fails at a rate at which BatchNorm works. Which of the explanations in lesson 16 does not hold
#    for it? Find an experiment that could prove you wrong.
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 2 and 3. J. L. Ba, J. R. Kiros and G. E. Hinton, Layer Normalization, 2016.
# J. Frankle, D. J. Schwab and A. S. Morcos, Training BatchNorm and Only BatchNorm, 2021.
