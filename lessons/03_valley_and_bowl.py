# %% [markdown]
# # 3. Valley and bowl: why scale features at all?
#
# Before we normalise inside a network, we do it to the inputs of the smallest model
# there is: two features, two weights. Here every number can be worked out, and the loss
# can be drawn.
#
# Text 004 says: if the cost function is smooth and has one minimum, the parameters
# "converge rapidly along the gradient"; if the data differ much in their distribution,
# it is "less like the bottom of a well and more like a valley", and the descent is
# slow. We take exactly its data, draw the picture it promises, and count the steps.
# Text 003 adds that scaled data help a model to *generalise*. That is another claim,
# and we test it at the end.
#
# You need: what a gradient is; for the last part, lesson 2. Running time: 5 to 10
# seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from matplotlib.animation import PillowWriter

from minidl import Activation, Dense, Sequential, Tensor
from minidl import data, experiments, functional as F, optim, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("03_valley_and_bowl")

# %% [markdown]
# ## The data of text 004
#
# Feature A lies between 1 and 10, feature B between 1 and 200. The text calls the last
# term "a little bias". In fact it is noise, because it is different for every point; a
# bias is one number for all.

# %%
rng = np.random.default_rng(42)

A = rng.uniform(1, 10, 100)
B = rng.uniform(1, 200, 100)
y = 2 * A + 3 * B + rng.normal(size=100) * 0.1

raw = np.stack([A, B], axis=1)
correlation = np.corrcoef(A, B)[0, 1]
print(f"first draws: A {A[0]:.7f}, B {B[0]:.8f}, y {y[0]:.8f}; correlation of A and B "
      f"{correlation:.4f}")

# %% [markdown]
# ## The loss and its shape
#
# The model is $w_A A + w_B B$, the loss the mean squared error over $n = 100$ points.
# With the features as the columns of $X$, the gradient is $\frac{2}{n} X^T (X w - y) =
# H d$, where $d$ is the distance to the minimum and $H = \frac{2}{n} X^T X$ the
# Hessian. The loss above its minimum is $\frac{1}{2} d^T H d$. The eigenvalues of $H$
# say how steep it is: $\lambda_{\max}$ in the steepest direction, $\lambda_{\min}$ in
# the flattest. Their ratio is the *condition number* $\kappa$. We leave out the
# intercept for now, so that there are only two weights to draw.


# %%
def hessian(x):
    return 2 / len(x) * x.T @ x


def gradient(x, w):
    return 2 / len(x) * x.T @ (x @ w - y)


def minimum(x):
    return np.linalg.solve(x.T @ x, x.T @ y)


def slopes(x):
    """The smallest and the largest eigenvalue of the Hessian."""
    return np.linalg.eigvalsh(hessian(x))[[0, -1]]


def condition(x):
    smallest, largest = slopes(x)
    return largest / smallest


# %%
def excess(x, w):
    """The loss at w above its minimum. w: (2,) or a whole grid (..., 2)."""
    d = w - minimum(x)
    return 0.5 * ((d @ hessian(x)) * d).sum(-1)


def descend(x, lr, steps):
    """Gradient descent from w = 0: the weights before every step and after the last."""
    path = [np.zeros(2)]
    for _ in range(steps):
        path.append(path[-1] - lr * gradient(x, path[-1]))
    return np.array(path)


w = Tensor(np.zeros(2), requires_grad=True)
F.mse_loss(F.matmul(Tensor(raw), w), y).backward()
by_hand = gradient(raw, np.zeros(2))
print(f"gradient at 0: by our formula {by_hand}, by minidl {w.grad}")

# %% [markdown]
# ## Five ways to hand over the same data
#
# *Raw*: as they are. *Centred*: minus the mean of each feature. *Scaled*: divided by
# the standard deviation of each feature. *Z-score*: both, as BatchNorm does with a
# batch. *Min-max*: mapped to the range from 0 to 1.
#
# Text 003 says that standardisation "is also called normalisation" and maps the data to
# a given range, and a page later that it gives mean 0 and standard deviation 1. These
# are min-max and z-score, and they are not the same.

# %%
inputs = {"raw": raw, "centred": raw - raw.mean(axis=0),
          "scaled": raw / raw.std(axis=0), "z-score": data.standardization(raw)(raw),
          "min-max": data.min_max(raw)(raw)}

# %% [markdown]
# ## Predict
#
# For each of the five, gradient descent starts at $w = 0$ with the best fixed learning
# rate there is for it, $2 / (\lambda_{\min} + \lambda_{\max})$. How many steps until
# the loss above the minimum is a millionth of what it was? Write down five numbers.
# Which matters more, to centre or to scale?
#
# ## Run


# %%
def steps_needed(x):
    smallest, largest = slopes(x)
    losses = excess(x, descend(x, 2 / (smallest + largest), 5000))
    return int(np.argmax(losses <= 1e-6 * losses[0]))


steps = {name: steps_needed(x) for name, x in inputs.items()}
print("\n         smallest    largest  condition  steps to   condition with")
print("       eigenvalue eigenvalue     number   a millionth  an intercept")
for name, x in inputs.items():
    smallest, largest = slopes(x)
    with_intercept = condition(np.column_stack([x, np.ones(len(x))]))
    print(f"{name:8}{smallest:9.4g}  {largest:9.5g}  {condition(x):9.4g}  "
          f"{steps[name]:9d}  {with_intercept:15,.4g}")

# %% [markdown]
# With an intercept the model has a column of ones beside the features. Now centring
# matters too: the z-score is the only one of the five whose condition number does not
# grow, because centred columns are at right angles to the ones.

# %%
ratio = steps["raw"] / steps["z-score"]
kappa = np.geomspace(1.2, 2000, 200)
fig, ax = plotting.figure(size=(11, 6.5), title=f"The same data: {steps['raw']:,} "
                                                "steps as they are, "
                                                f"{steps['z-score']} steps after a "
                                                "z-score")
color, line = plotting.LOOKS[1]
ax.plot(kappa, np.log(1e6) / (2 * np.log((kappa + 1) / (kappa - 1))), color=color,
        linestyle=line, linewidth=2.5, label=r"theory: $\ln(10^6)\ /\ 2 "
                                             r"\ln\left(\frac{\kappa + 1}{\kappa - "
                                             r"1}\right)$, about $3.5\,\kappa$")
ax.plot([condition(x) for x in inputs.values()], list(steps.values()), "o",
        color=plotting.LOOKS[0][0], markersize=11, label="measured")
for name, x in inputs.items():
    below = name in ("min-max", "z-score")
    ax.annotate(name, (condition(x), steps[name]), xytext=(14, -20) if below
                else (-14, 8), textcoords="offset points", ha="left" if below
                else "right", fontsize=15)
ax.set(xscale="log", yscale="log",
       xlabel=r"condition number $\kappa = \lambda_{\max} / \lambda_{\min}$",
       ylabel="steps to a millionth\nof the first loss")
plotting.legend(ax)
lesson.show(fig, "steps")

# %% [markdown]
# ## The surfaces
#
# Left the raw features, right the z-scores, with the path of gradient descent at the
# same share of the largest possible learning rate, $1.5 / \lambda_{\max}$. The bottom
# of the valley looks flat but is not: along it the loss rises, too, some 900 times less
# steeply than across it.


# %%
def window(x, points):
    """A square grid of weights around the minimum, (points, points, 2)."""
    centre = minimum(x)
    half = 1.35 * np.abs(centre).max()
    return np.stack(np.meshgrid(*(np.linspace(c - half, c + half, points)
                                  for c in centre)), axis=-1)


SHOWN = 30
PANELS = {"raw": "valley: raw features", "z-score": "bowl: z-scores"}
paths = {name: descend(inputs[name], 1.5 / slopes(inputs[name])[1], SHOWN)
         for name in PANELS}
color = plotting.LOOKS[1][0]

# %%
fig, axes = plotting.figure(1, 2, size=(14, 7),
                            subplot_kw={"projection": "3d", "computed_zorder": False},
                            title="The same data, the same model: a valley, and after "
                                  "scaling a bowl")
for ax, (name, title) in zip(axes, PANELS.items()):
    x, grid = inputs[name], window(inputs[name], 50)
    ax.plot_surface(grid[..., 0], grid[..., 1], excess(x, grid) / 1000, cmap="viridis",
                    linewidth=0)
    between = np.linspace(paths[name][:-1], paths[name][1:], 30, axis=1).reshape(-1, 2)
    # on the surface, not through it
    for points, look in ((between, "-"), (paths[name], "o")):
        ax.plot(*points.T, excess(x, points) / 1000, look, color=color, markersize=8,
                markeredgecolor="white", linewidth=3)
    ax.set_xlabel("weight of A", labelpad=9)
    ax.set_ylabel("weight of B", labelpad=9)
    ax.set_zlabel("loss above minimum / 1,000", labelpad=9)
    ax.set_title(f"{title}\ncondition number {condition(x):.4g}", fontsize=16)
    ax.tick_params(labelsize=12)
    ax.locator_params(nbins=5)
    ax.view_init(elev=50, azim=-25)
    # leaves room for the label of the upright axis
    ax.set_box_aspect((4, 4, 3.3), zoom=0.9)
lesson.show(fig, "surface")

# %% [markdown]
# The same from above; both axes of a panel have the same scale. First as a film, one
# frame for each step, saved as a GIF beside the figures (any browser shows it), then
# its last frame.

# %%
def seen_from_above():
    """Two panels with contours and empty paths: the figure, and the lines to fill."""
    fig, axes = plotting.figure(1, 2, size=(13, 7.2))
    lines = {}
    for ax, (name, title) in zip(axes, PANELS.items()):
        x, grid = inputs[name], window(inputs[name], 200)
        loss = excess(x, grid) / excess(x, np.zeros(2))
        ax.contour(grid[..., 0], grid[..., 1], loss, colors="0.6", linewidths=1.3,
                   levels=[0.0005, 0.01, 0.1, 0.3, 0.6, 1, 1.5])
        ax.plot(*minimum(x), "*", color="black", markersize=18, linestyle="none",
                label="minimum", zorder=3)
        lines[name], = ax.plot([], [], "o-", color=color, markersize=6, linewidth=2,
                               label="gradient descent from 0")
        ax.set(xlabel="weight of A", ylabel="weight of B", aspect="equal")
        ax.set_title(title, fontsize=16)
        ax.grid(False)
    plotting.legend(axes[0])
    return fig, lines


# %%
fig, lines = seen_from_above()
film, writer = plotting.folder() / f"{lesson.name}-descent.gif", PillowWriter(fps=10)
message = fig.suptitle("gradient descent", fontsize=18, fontweight="bold")
fig.canvas.draw()
fig.set_layout_engine("none")  # from here on everything keeps its place
with writer.saving(fig, film, dpi=50):
    for step in range(SHOWN + 1):
        message.set_text(f"gradient descent, step {step}")
        for name, line in lines.items():
            line.set_data(*paths[name][:step + 1].T)
        writer.grab_frame()
print(f"figure: {film}")

left = {name: np.linalg.norm(path[-1] - minimum(inputs[name]))
        / np.linalg.norm(minimum(inputs[name])) for name, path in paths.items()}
message.set_text(f"After {SHOWN} steps {left['raw']:.0%} of the way is left in the "
                 f"valley, {left['z-score']:.0%} in the bowl")
lesson.show(fig, "paths")

# %% [markdown]
# ## Explain
#
# Along an eigenvector of $H$ each step multiplies the distance to the minimum by $1 -
# \eta \lambda$, where $\eta$ is the learning rate. In the steepest direction this must
# lie between -1 and 1, therefore $\eta < 2 / \lambda_{\max}$: *one steep direction
# limits the learning rate for all*. The flattest direction is then left with a factor
# of about $1 - 2 \lambda_{\min} / \lambda_{\max}$, which is hardly below 1.
#
# The limit is sharp. We take the raw features 1 % below it and 1 % above.

# %%
limit = 2 / slopes(raw)[1]
growth = {}
for share in (0.99, 1.01):
    losses = excess(raw, descend(raw, share * limit, 400))
    growth[share] = losses[-1] / losses[0]
    print(f"rate {share} x 2/lambda_max: loss above minimum {losses[0]:.3g} at first, "
          f"{losses[-1]:.3g} after 400 steps")

# %% [markdown]
# Scaling gives the two directions equal importance. What is left after a z-score is the
# correlation $\rho$ of the features: $H$ has the eigenvalues $2 (1 + \rho)$ and $2 (1 -
# \rho)$, so $\kappa = \frac{1 + |\rho|}{1 - |\rho|}$, whatever the units. That also
# holds with an outlier, where min-max fails because the outlier takes up the whole
# range.

# %%
expected = (1 + abs(correlation)) / (1 - abs(correlation))
with_outlier = np.concatenate([raw, [[1000.0, 100.0]]])
condition_with_outlier = {}
for name, scaling in {"z-score": data.standardization, "min-max": data.min_max}.items():
    x = scaling(with_outlier)(with_outlier)
    condition_with_outlier[name] = condition(x)
    print(f"{name}: condition number {condition(inputs[name]):.3g}, with one outlier A "
          f"= 1000 {condition(x):.3g}; the other 100 values of A then span "
          f"{np.ptp(x[:-1, 0]):.3f}")

# %% [markdown]
# Both squeeze the other hundred points into a small range. The z-score only keeps the
# *loss* well shaped.
#
# ## Does scaling help on new data?
#
# Text 003 says more: standardisation makes the samples "more similar to each other",
# which helps "learning and generalisation to new data". So far we have measured speed.
# A faster descent to the same minimum changes nothing on new data, because the model at
# the end is the same. In a network it need not be the same, so we measure it there: 500
# images, 64 hidden ReLU units, 1,000 steps, pixels raw or as z-scores. Each gets the
# best of five learning rates, chosen on 500 other training images, and six seeds.
# Predict the difference in test accuracy.

# %%
train, test = lesson.load_data()
RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
scaling = data.standardization(train[0][:500])
scales = {"raw": lambda x: x, "z-score": scaling}


def accuracy_of(scale, lr, seed, images):
    """Accuracy on the 500 images it is trained on, and on others."""
    model = Sequential([Dense(64, kernel_initializer="he_normal"), Activation("relu"),
                        Dense(10)], seed=seed)
    x, y = scale(train[0][:500]), train[1][:500]
    run = experiments.run(model, ((x, y), (scale(images[0]), images[1])),
                          optimizer=optim.SGD(lr=lr), steps=1000, batch_size=50,
                          eval_steps=[1000])
    if run.diverged_at is not None:
        return 0.1, 0.1
    return np.mean(model.predict(x).argmax(axis=1) == y), run.accuracy[-1]


# %%
held_out, new = train[0][500:1000], {}
for name, scale in scales.items():
    tried = [accuracy_of(scale, lr, lesson.seed, (held_out, train[1][500:1000]))[1]
             for lr in RATES]
    lr = experiments.best(RATES, tried)
    fitted, new[name] = np.array([accuracy_of(scale, lr, s, test)
                                  for s in lesson.seeds(6)]).T
    print(f"{name:8}: best learning rate {lr:g}, training accuracy "
          f"{fitted.mean():.3f}, test accuracy {new[name].mean():.3f}")
generalises = experiments.paired_difference(new["z-score"], new["raw"])
print(f"test accuracy, z-scores - raw: {generalises}")

# %% [markdown]
# Both networks know their 500 images. On new ones the z-scores are not better: over the
# base seeds that we tried they were worse by two to three points. (A z-score of each
# pixel also enlarges pixels at the border that are nearly always black, and with them
# their noise.) So scaling is a matter of speed here; that it helps to generalise does
# not hold for these images.
#
# ## What this has to do with BatchNorm
#
# A hidden layer's output is the next layer's input. We scale the data once, before
# training. A hidden layer's output changes with the weights before it, and therefore
# has to be scaled anew in each step: that is what BatchNorm does. But a network's loss
# has no constant $H$, so that the same remedy helps there is not shown here. Lesson 7
# begins to measure it.

# %%
print()
draws = np.abs([A[0] - 7.9656044, B[0] - 181.80755745, y[0] - 561.41821391]).max()
lesson.check("largest difference of the first draws from those we quote", draws,
             at_most=1e-7, claim=False)
lesson.check("largest difference of our gradient from minidl's, relative",
             np.abs(w.grad / by_hand - 1).max(), at_most=1e-9, claim=False)
for name, known in (("raw", 919.5), ("z-score", 1.317)):
    kappa = condition(inputs[name])
    lesson.check(f"condition number {name}, relative difference from {known}",
                 abs(kappa / known - 1), at_most=0.005, claim=False)
lesson.check("condition number z-score, difference from (1 + |rho|) / (1 - |rho|)",
             abs(condition(inputs["z-score"]) - expected), at_most=1e-9, claim=False)
lesson.check("steps raw / z-score", ratio, at_least=300, claim=False)
lesson.check("rate 0.99 x 2/lambda_max: loss after 400 steps / first loss",
             growth[0.99], at_most=0.01, claim=False)
lesson.check("rate 1.01 x 2/lambda_max: loss after 400 steps / first loss",
             growth[1.01], at_least=1e6, claim=False)
lesson.check("new images: size of the difference in accuracy, z-scores - raw",
             abs(generalises.mean), at_most=0.06, claim=False)
lesson.check("one outlier: condition number min-max / z-score",
             condition_with_outlier["min-max"] / condition_with_outlier["z-score"],
             at_least=5, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. What limits the learning rate of gradient descent on a bowl?**
#
# - A: the largest eigenvalue of the Hessian
# - B: the smallest eigenvalue
# - C: the number of data
# - D: the loss at the start
#
# **2. A feature has mean 0, standard deviation 1, and one value of 4. What has been
# done to it?**
#
# - A: min-max scaling, because standardisation maps to a given range
# - B: a z-score, which has no fixed range
# - C: either, they are two names of one thing
# - D: it was made normally distributed
#
# <details><summary>Answers</summary>
#
# 1 A. Above $2 / \lambda_{\max}$ the steepest direction overshoots, and the loss grows.
# The smallest eigenvalue (B) says how long the rest of the way takes at that rate. C
# and D change neither limit.
#
# 2 B. A and C follow text 003, which calls standardisation "also normalisation" and a
# mapping to a given range, and a page later describes the z-score. D is text 001's
# "standard normal distribution": shifting and scaling leave the shape as it was.
#
# </details>
#
# ## Try
#
# 1. Easy: centring alone hardly helps. Which sentence of "Explain" says why? And why
#    does scaling alone help so much?
# 2. Easy: draw the paths at $1 / \lambda_{\max}$ and at $1.95 / \lambda_{\max}$. What
#    changes in the valley, what in the bowl?
# 3. Medium: make B follow A, `B = 20 * A + rng.uniform(1, 20, 100)`, and predict
#    $\kappa$ of the z-scores from the correlation. (Most CHECKs will fail: they know
#    the old data.)
# 4. Medium: add momentum, `v = 0.9 * v - lr * gradient; w = w + v`, to `descend`. Which
#    of the five gain most?
# 5. Research: what would bring $\kappa$ to exactly 1? (LeCun et al. 1998 call the
#    missing step decorrelation.) What would that cost for the 784 pixels of an image,
#    in each step, for each layer?
#
# Now write it yourself: exercise 10 (`python -m minidl exercise 10 --copy DIR`).
#
# Sources: texts 003 and 004 (lesson 4 lists all five). Y. LeCun, L. Bottou, G. Orr and
# K.-R. Müller, Efficient BackProp, 1998 (to centre, scale and decorrelate inputs); S.
# Ioffe and C. Szegedy 2015, section 3, who start from it.
