# %% [markdown]
# # Solutions to lesson 16: scale invariance
#
# For teachers. Numbers: digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import estimate_population_statistics, optim
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("16_solutions")
(x_train, y_train), (x_test, y_test) = lesson.load_data()


def network(a=1.0, eps=1e-12):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, use_bias=False, kernel_initializer="he_normal"))
        layers += [BatchNorm(eps=eps), Activation("relu")]
    layers.append(Dense(10, kernel_initializer="he_normal"))
    model = Sequential(layers, seed=lesson.seed).build(784).astype(np.float64)
    for layer in model.layers[:-1:3]:
        layer.kernel.data *= a
    return model


# %%
def train(model, lr=0.3, steps=100, make=optim.SGD, change=lambda x: x, **settings):
    """The losses, and |W|² and |g|² of the first kernel before each step."""
    model.train()
    hidden = [layer.kernel for layer in model.layers[:-1:3]]
    rest = [p for p in model.parameters() if not any(p is h for h in hidden)]
    optimizers = make(hidden, lr=lr, **settings), optim.SGD(rest, lr=0.3)
    log = []
    stream = (pair for _ in range(9)
              for pair in batches(x_train, y_train, 64, model.shuffle_rng))
    for _, (x, y) in zip(range(steps), stream):
        loss = F.cross_entropy(model(change(x.astype(np.float64))), y)
        model.zero_grad()
        loss.backward()
        log.append((loss.item(), (hidden[0].data ** 2).sum(),
                    (hidden[0].grad ** 2).sum()))
        for optimizer in optimizers:
            optimizer.step()
    return np.array(log).T


def apart(one, two):
    return np.abs(one[0] - two[0]).max()


once = train(network())

# %% [markdown]
# ## 1. Easy: a negative factor
#
# $\hat x$ changes its sign (to 2e-11 in the first layer), so the next layer sees
# something else, ReLU lets the other half of the images pass, and the losses differ
# by up to 0.18 although the rate was multiplied by 9. Only a positive factor cancels.

# %%
batch = x_train[:64].astype(np.float64)
hidden = [network(a).train().layers[0](batch) for a in (1, -3)]
x_hat = [BatchNorm(eps=1e-12).build(64).astype(np.float64).train()(z).numpy()
         for z in hidden]
print(f"1: x_hat plus x_hat at a = -3: at most {np.abs(x_hat[0] + x_hat[1]).max():.0e}"
      f"; losses of the runs differ by {apart(once, train(network(-3.0), 2.7)):.2f}")
lesson.check("1: x_hat plus x_hat at a = -3, largest",
             np.abs(x_hat[0] + x_hat[1]).max(), at_most=1e-8)

# %% [markdown]
# ## 2. Easy: the trap: x + 7
#
# 10 % right with the running averages, 93 % with statistics taken anew. A shift of 7
# adds 7 times the sum of a unit's weights to its mean, and that sum moves with every
# step. Training does not notice, because each batch brings its own mean. The averages
# are always late, and here a small delay is large. Centre the inputs.

# %%
shift = network()
train(shift, change=lambda x: x + 7)


def accuracy():
    outputs = shift.predict(x_test.astype(np.float64) + 7)
    return np.mean(outputs.argmax(axis=1) == y_test)


late = accuracy()  # with running averages
estimate_population_statistics(shift, x_train[:4000].astype(np.float64) + 7)
exact = accuracy()
print(f"2: accuracy on x + 7: {late:.3f} with running averages, {exact:.3f} with "
      "statistics taken anew")
lesson.check("2: accuracy with statistics taken anew - with running averages",
             exact - late, at_least=0.4)

# %% [markdown]
# ## 3. Medium: weight decay is a growing rate
#
# Put $w_t = q^t V_t$ into $w_{t+1} = q w_t - \eta g(w_t)$. The gradient at $q^t V$ is
# $q^{-t}$ times that at $V$, so $q^{t+1} V_{t+1} = q^{t+1} V_t - \eta q^{-t} g(V_t)$,
# and dividing gives the rate $\eta q^{-(2t+1)}$. The losses agree to 8e-13. With
# decay the squared length of the kernel falls from 127 to 52. Weight decay does not
# simplify these layers, it speeds up their turning.

# %%
decayed = train(network(), steps=200, weight_decay=0.01)
q = 1 - 0.3 * 0.01
growing = train(network(), lr=lambda t: 0.3 * q ** -(2 * t + 1), steps=200)
print(f"3: losses with decay and with the growing rate differ by at most "
      f"{apart(decayed, growing):.0e}; |W|² {decayed[1, 0]:.0f} goes to "
      f"{decayed[1, -1]:.0f} with decay, to {growing[1, -1]:.0f} with the growing rate")
lesson.check("3: losses with decay and with the growing rate, largest difference",
             apart(decayed, growing), at_most=1e-9)

# %% [markdown]
# ## 4. Medium: Adam
#
# By 10, not by 100: Adam's step does not depend on the length of the gradient, so a
# step only has to grow with the weights. With 10 the losses agree to 1e-12.

# %%
adam = train(network(), 0.01, make=optim.Adam, eps=1e-30)
differences = {}
for factor in (1, 10, 100):
    other = train(network(10.0), 0.01 * factor, make=optim.Adam, eps=1e-30)
    differences[factor] = apart(adam, other)
    print(f"4: Adam, weights times 10, rate times {factor}: losses differ by at most "
          f"{differences[factor]:.0e}")
lesson.check("4: Adam, weights times 10, rate times 10: difference of the losses",
             differences[10], at_most=1e-8)

# %% [markdown]
# ## 5. Medium: momentum
#
# No. The squared length grows by 76, and the gradients alone would make it grow by
# 0.6. The gradient stands at a right angle to the present weights, but the velocity
# consists of older gradients, which did so to older weights. One has to put the
# velocity into Pythagoras, and its inner product with the weights is not 0.

# %%
_, length, g = train(network(), 0.1, momentum=0.9)
predicted = length[0] + 0.1 ** 2 * (np.cumsum(g) - g)
print(f"5: momentum 0.9: |W|² grows by {length[-1] - length[0]:.2f}, by Pythagoras "
      f"with the gradients by {predicted[-1] - length[0]:.2f}")
lesson.check("5: momentum 0.9: growth of |W|² / by Pythagoras with the gradients",
             (length[-1] - length[0]) / (predicted[-1] - length[0]), at_least=10)

# %% [markdown]
# ## 6. Research: equilibrium
#
# At a decay of 0.03 the effective rate settles: 0.0241 at step 300, 0.0235 at
# step 600. At 0.001 it hardly moves in 600 steps, at 0.01 it still rises. In
# equilibrium what the steps add, $\eta^2 \|g\|^2$, is what the decay takes away,
# $2 \eta \lambda \|w\|^2$. With $\|g\| = G / \|w\|$ the level is
# $\eta / \|w\|^2 = \sqrt{2 \eta \lambda} / G$.

# %%
for decay in (0.001, 0.01, 0.03):
    _, length, g = train(network(), steps=600, weight_decay=decay)
    rate = 0.3 / length
    print(f"6: decay {decay}: effective rate {rate[0]:.4f} at first, {rate[300]:.4f} "
          f"at step 300, {rate[-1]:.4f} at step 600")
lesson.check("6: decay 0.03: effective rate, step 600 / step 300 - 1, size",
             abs(rate[-1] / rate[300] - 1), at_most=0.15)
lesson.finish()
