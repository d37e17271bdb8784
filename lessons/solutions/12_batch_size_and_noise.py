# %% [markdown]
# # Solutions to lesson 12: batch size and noise
#
# For teachers. Numbers: digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, LayerNorm, Sequential, Tensor
from minidl import experiments, optim
from minidl.lessonkit import Lesson

lesson = Lesson("12_solutions")
data = lesson.load_data()
x_train, y_train = data[0]


def network(norm, seed=0):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        layers += [norm()] if norm else []
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)


# %%
def accuracy(norm, size, lr, steps, seeds=3):
    return np.mean([experiments.run(network(norm, seed), data, steps=steps,
                                    optimizer=optim.SGD(lr=lr), batch_size=size,
                                    eval_steps=[steps]).accuracy[0]
                    for seed in lesson.seeds(seeds)])


# %% [markdown]
# ## 1. Easy: the bound
#
# Let $d_i = x_i - \mu_B$, so $\sum d_i = 0$. The others sum to $-d_i$, and $m - 1$
# numbers with that sum have at least the sum of squares $d_i^2 / (m - 1)$. Hence
# $m \sigma_B^2 \ge d_i^2 + d_i^2 / (m - 1) = d_i^2 \frac{m}{m - 1}$, that is
# $\hat x_i^2 = d_i^2 / \sigma_B^2 \le m - 1$. Equality: all others are equal.
#
# The code checks the case of equality for $m = 4$.

# %%
batch = np.array([[3.0], [0.0], [0.0], [0.0]])
x_hat = (batch - batch.mean()) / batch.std()
print("1:", x_hat.ravel(), "bound", np.sqrt(3))
lesson.check("1: a batch of 4, largest |x_hat| - bound, size",
             abs(np.abs(x_hat).max() - np.sqrt(3)), at_most=1e-9, claim=False)

# %% [markdown]
# ## 2. Easy: the same number of steps
#
# At 64 nothing changes, because an epoch has 156 steps anyway (0.941 and 0.898). At
# 256 the plain network gains more from the longer training than BatchNorm does: 0.933
# instead of 0.842, and 0.958 instead of 0.934. Of 9 points 2.5 are left, so most of
# the gain at 256 was a lead at step 39.

# %%
for size, rates in ((64, (1.0, 0.1)), (256, (1.0, 0.3))):
    with_bn, without = (accuracy(norm, size, lr, 150)
                        for norm, lr in zip((BatchNorm, None), rates))
    print(f"2: batches of {size}, 150 steps: {with_bn:.3f} with, {without:.3f} without")
lesson.check("2: batches of 256, 150 steps: gain left, size", abs(with_bn - without),
             at_most=0.05, claim=False)

# %% [markdown]
# ## 3. Medium: backward in a batch of two
#
# $\hat x$ is 1 or $-1$ almost exactly, so it does not react to a small change of the
# inputs, and its gradient is nearly 0. It is not for units whose two inputs differ by
# little more than $\sqrt\epsilon$: with a difference of 1 the gradient is 0.0001,
# with 0.1 it is 0.12, and with 0.001 it is 457. The units that can hardly tell the
# two images apart are trained, and violently.

# %%
layer = BatchNorm(eps=1e-5).build(3).train()
x = np.array([[0.0, 0.0, 0.0], [1.0, 0.1, 0.001]], np.float32)
x = Tensor(x, requires_grad=True)
(layer(x) * np.array([[1.0], [-2.0]], np.float32)).sum().backward()
print("3: gradient of the inputs, differences 1, 0.1 and 0.001:")
print(x.grad)
lesson.check("3: |gradient|, inputs that differ by 0.001 / by 1",
             np.abs(x.grad[0, 2] / x.grad[0, 0]), at_least=1000)

# %% [markdown]
# ## 4. Medium: ghost batches of two
#
# That is about as bad: 0.547 in ghost batches of 2 against 0.932. The gradient is
# averaged over 64 images, so it is not the gradient that a batch of two is too small
# for. It is the statistics.

# %%
ghost = accuracy(lambda: BatchNorm(ghost_batch_size=2), 64, 0.1, 156, seeds=2)
whole = accuracy(BatchNorm, 64, 0.1, 156, seeds=2)
print(f"4: batches of 64, rate 0.1: {ghost:.3f} in ghost batches of 2, "
      f"{whole:.3f} whole")
lesson.check("4: batches of 64: accuracy whole - in ghost batches of 2", whole - ghost,
             at_least=0.15)

# %% [markdown]
# ## 5. Research: LayerNorm
#
# LayerNorm works at every size: 0.812 in batches of 2, where BatchNorm has 0.359,
# because a prediction does not depend on companions. At 16 it has 0.908, BatchNorm
# 0.920. In large batches BatchNorm is ahead: 0.942 against 0.930 at 64, and 0.934
# against 0.838 at 256. (The rates of LayerNorm were guessed, those of BatchNorm
# chosen.)

# %%
values = {}
for size, lr in ((2, 0.01), (4, 0.03), (16, 0.1), (64, 0.3), (256, 0.3)):
    values[size] = accuracy(LayerNorm, size, lr, min(400, len(x_train) // size))
    print(f"5: batches of {size:3}: LayerNorm {values[size]:.3f}")
lesson.check("5: LayerNorm in batches of 2: accuracy", values[2], at_least=0.65,
             claim=False)
lesson.finish()
