"""The way on: the same model in PyTorch or Keras, where GPUs and clusters wait, and back from
PyTorch.

PyTorch and Keras are imported only when called for; minidl itself needs neither.
"""

from functools import partial
from importlib import import_module

from . import functional as F
from .convolution import AveragePool2D, Conv2D, GlobalAveragePool2D, MaxPool2D
from .layers import Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm
from .sequential import Sequential

# the function here: the class in torch.nn and its options, the name in keras.activations and its
# options
ACTIVATIONS = {
    F.relu: ("ReLU", {}, "relu", {}),
    F.leaky_relu: ("LeakyReLU", {"negative_slope": 0.01}, "leaky_relu", {"negative_slope": 0.01}),
    F.sigmoid: ("Sigmoid", {}, "sigmoid", {}),
    F.tanh: ("Tanh", {}, "tanh", {}),
    F.softplus: ("Softplus", {"beta": 1.0, "threshold": 20.0}, "softplus", {}),
    F.gelu: ("GELU", {"approximate": "tanh"}, "gelu", {"approximate": True}),
    F.gelu_exact: ("GELU", {"approximate": "none"}, "gelu", {"approximate": False}),
    F.elu: ("ELU", {"alpha": 1.0}, "elu", {}),
    F.silu: ("SiLU", {}, "silu", {}),
    F.softmax: ("Softmax", {"dim": -1}, "softmax", {}),
    F.log_softmax: ("LogSoftmax", {"dim": -1}, "log_softmax", {}),
    F.linear_activation: ("Identity", {}, "linear", {})}
# the layer here: how to make its counterpart, still without the weights, in PyTorch and in Keras
LAYERS = {
    # meta: draws no weights
    Dense: (lambda nn, layer: nn.Linear(layer.inputs, layer.units, layer.use_bias, device="meta"),
            lambda keras, layer: keras.layers.Dense(layer.units, use_bias=layer.use_bias)),
    Activation: (lambda nn, layer: getattr(nn,
                                           ACTIVATIONS[layer.function][0])(**ACTIVATIONS[layer.function][1]),
                 lambda keras, layer: _keras_activation(keras, *ACTIVATIONS[layer.function][2:])),
    BatchNorm: (lambda nn,
                layer: (nn.BatchNorm1d if len(layer.input_shape or "chw") < 3 else nn.BatchNorm2d)(
                    len(layer.running_mean), layer.eps, layer.momentum, layer.affine),
                lambda keras, layer: keras.layers.BatchNormalization(
                    1, 0.99 if layer.momentum is None else 1 - layer.momentum, layer.eps,
                    layer.affine, layer.affine)),
    LayerNorm: (lambda nn, layer: nn.LayerNorm(layer.input_shape[-1], layer.eps, layer.affine),
                lambda keras, layer: keras.layers.LayerNormalization(
                    epsilon=layer.eps, center=layer.affine, scale=layer.affine)),
    Dropout: (lambda nn, layer: nn.Dropout(layer.rate), lambda keras,
              layer: keras.layers.Dropout(layer.rate)),
    Conv2D: (lambda nn, layer: nn.Conv2d(
                 layer.inputs, layer.filters, layer.kernel_size, layer.stride, layer.zeros,
                 bias=layer.use_bias, device="meta"),
             lambda keras, layer: _keras_convolution(keras, layer)),
    MaxPool2D: (lambda nn, layer: nn.MaxPool2d(layer.size),
                lambda keras, layer: keras.layers.MaxPooling2D(
                    layer.size, data_format="channels_first")),
    AveragePool2D: (lambda nn, layer: nn.AvgPool2d(layer.size),
                    lambda keras, layer: keras.layers.AveragePooling2D(
                        layer.size, data_format="channels_first")),
    GlobalAveragePool2D: (lambda nn, layer: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                          lambda keras, layer: keras.layers.GlobalAveragePooling2D(
                              data_format="channels_first")),
    # as the numbers lie
    Flatten: (lambda nn, layer: nn.Flatten(), lambda keras,
              layer: keras.layers.Flatten("channels_last"))}

# in PyTorch
BUFFERS = {
    "running_mean": "running_mean",
    "running_var": "running_var",
    "updates": "num_batches_tracked",
}


def to_torch(model):
    """A torch.nn.Sequential with copies of model's weights and buffers, of the same dtype and in
    the same mode.

    model: a Sequential or one layer. Outputs, gradients and running statistics agree with those
    here; dropout draws other numbers. Nested Sequentials become one row, a Dense with an activation
    two modules, BatchNorm a BatchNorm2d if its input_shape is (channels, height, width). PyTorch
    knows neither ghost batches nor frozen statistics. Raises ValueError for what has no
    counterpart.
    """
    row = _row(model, "to_torch")
    model.parameters()  # complains if the weights are not made yet
    torch = _package("torch", "to_torch needs PyTorch: pip install torch")
    # a layer used twice is a module used twice
    modules = {layer: LAYERS[type(layer)][0](torch.nn, layer) for layer in row}
    result = torch.nn.Sequential(*map(modules.get, row)).train(model.training)
    for layer, module in modules.items():
        module.train(layer.training)
        # of kernel and bias, or gamma and beta
        for name, p in zip(("weight", "bias"), layer.parameters()):
            values = torch.tensor(_to_theirs(p.data))
            setattr(module, name, torch.nn.Parameter(values, p.requires_grad))
        for name, buffer in layer.named_buffers():
            setattr(module, BUFFERS[name], torch.tensor(buffer))
    return result


def from_torch(module):
    """The way back: a Sequential from a torch.nn.Sequential, also a nested one, or from one module.

    Softmax(dim=1) is taken for one over the last axis, which it is for inputs (n, classes). Where
    the first module does not tell the shape of an input, build(input_shape) or the first batch
    does. Raises ValueError for other modules.
    """
    nn = _package("torch", "from_torch needs PyTorch: pip install torch").nn
    row = [
        part
        for _, part in module.named_modules(remove_duplicate=False)
        if type(part) is not nn.Sequential
    ]
    layers = {part: _layer(nn, part) for part in row}
    for part, layer in layers.items():
        for p, q in zip(layer.parameters(), part.parameters()):
            p.data, p.requires_grad = _to_ours(q.numpy(force=True)).copy(), q.requires_grad
        for name, _ in layer.named_buffers():
            setattr(layer, name, getattr(part, BUFFERS[name]).numpy(force=True).copy())
        if type(part) in (nn.BatchNorm2d, nn.Conv2d):
            layer.input_shape = None  # images of any size
    result = Sequential([layers[part] for part in row])
    result.training = module.training
    for part, layer in layers.items():
        layer.training = part.training
    return result


def to_keras(model):
    """A keras.Sequential with copies of model's weights and the same outputs. model, errors: as in
    `to_torch`.

    Two things differ if it is trained on: Keras averages the biased variance of a batch, minidl the
    unbiased one, and momentum=None, the plain average, becomes Keras' own 0.99. Images stay (n,
    channels, height, width). With gelu or leaky_relu, whose forms here are not Keras' own, Keras
    can save the weights but not the model.
    """
    row = _row(model, "to_keras")
    if getattr(model, "input_shape", None) is None:
        raise RuntimeError("to_keras needs to know the shape of an input: call "
                           "model.build(input_shape) first")
    keras = _package("keras", "to_keras needs Keras and a backend: pip install keras jax, and set "
                              "KERAS_BACKEND=jax")
    layers = {layer: LAYERS[type(layer)][1](keras, layer) for layer in row}
    result = keras.Sequential([keras.Input(model.input_shape), *map(layers.get, row)])
    for layer, keras_layer in layers.items():
        statistics = [buffer for name, buffer in layer.named_buffers() if name != "updates"]
        # the same order there
        keras_layer.set_weights([p.data for p in layer.parameters()] + statistics)
        for variable, p in zip(keras_layer.weights, layer.parameters()):
            variable.trainable = p.requires_grad
    return result


def _row(model, caller):
    """All layers one after the other, the activation of a Dense as a layer of its own."""
    if type(model) is Sequential:
        return [layer for part in model.layers for layer in _row(part, caller)]
    row = [model]
    if type(model) in (Dense, Conv2D) and model.activation is not None:
        row.append(Activation(model.activation).train(model.training))
    if (
        type(model) not in LAYERS
        or type(row[-1]) is Activation
        and row[-1].function not in ACTIVATIONS
    ):
        raise ValueError(f"{caller} has no counterpart for {model.label}: it knows "
                         f"{', '.join(c.__name__ for c in LAYERS)} and the activations that have a "
                         "name; convert the layers around it and write this one there")
    return row


def _layer(nn, module):
    kind = type(module)
    if kind is nn.Linear:
        return Dense(
            module.out_features, use_bias=module.bias is not None, input_shape=module.in_features
        )
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and module.track_running_stats:
        return BatchNorm(
            module.momentum, module.eps, module.affine, input_shape=module.num_features
        )
    if (
        kind is nn.LayerNorm
        and len(module.normalized_shape) == 1
        and (module.bias is None) != module.elementwise_affine
    ):
        return LayerNorm(module.eps, module.elementwise_affine, input_shape=module.normalized_shape)
    if kind is nn.Dropout:
        return Dropout(module.p)
    if kind is nn.Conv2d and _is_plain(module):
        side, padding = module.kernel_size[0], module.padding
        return Conv2D(
            module.out_channels, side, module.stride,
            padding if isinstance(padding, str) else padding[0], use_bias=module.bias is not None,
            input_shape=(module.in_channels, side, side)
        )
    for pool, theirs in ((MaxPool2D, nn.MaxPool2d), (AveragePool2D, nn.AvgPool2d)):
        if kind is theirs and repr(module) == repr(theirs(module.kernel_size)):
            return pool(module.kernel_size)
    if kind is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return GlobalAveragePool2D()
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Flatten()
    state = {
        key: -1 if (key, value) == ("dim", 1) else value for key, value in vars(module).items()
    }
    for function, (name, options, _, _) in ACTIVATIONS.items():
        if kind is getattr(nn, name) and options.items() <= state.items():
            return Activation(function)
    raise ValueError(
        f"from_torch has no counterpart for {module}: it knows Sequential, Linear, "
        "Dropout, Flatten(), BatchNorm1d and BatchNorm2d with running statistics, Conv2d with "
        "square windows and zeros around the image, MaxPool2d and AvgPool2d whose windows lie "
        "side by side, AdaptiveAvgPool2d(1), "
        "LayerNorm over the last axis, and "
        f"{[getattr(nn, name)(**options) for name, options, _, _ in ACTIVATIONS.values()]}"
    )


def _to_theirs(array):
    """A kernel with PyTorch's order of axes: outputs first, the window of a convolution last."""
    return array.T if array.ndim < 4 else array.transpose(3, 2, 0, 1)


def _to_ours(array):
    return array.T if array.ndim < 4 else array.transpose(2, 3, 1, 0)


def _is_plain(module):
    """Whether a Conv2d of PyTorch is one that Conv2D can be: square windows, zeros around."""
    square = [module.kernel_size, module.stride]
    if not isinstance(module.padding, str):
        square.append(module.padding)
    return all(a == b for a, b in square) and (
        module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros")


def _keras_convolution(keras, layer):
    """The padding as Keras' own where it has one, else as a layer before it."""
    layers = keras.layers
    same = layer.stride == 1 and 2 * layer.zeros == layer.kernel_size - 1
    convolution = layers.Conv2D(
        layer.filters, layer.kernel_size, layer.stride, "same" if same else "valid",
        data_format="channels_first", use_bias=layer.use_bias)
    if same or not layer.zeros:
        return convolution
    zeros = layers.ZeroPadding2D(layer.zeros, data_format="channels_first")
    return keras.Sequential([zeros, convolution])


def _keras_activation(keras, name, options):
    return keras.layers.Activation(
        partial(getattr(keras.activations, name), **options) if options else name
    )


def _package(name, line):
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{line} ({error})") from None
