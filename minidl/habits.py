"""Words typed from habit, as Keras, PyTorch or NumPy has them, and minidl's word for each.

Each table holds {word of another library: what to write here}. The README has the same in short.
"""

from inspect import getattr_static

# Attributes of any module, and of the kinds of layers
MODULE = {
    "add_module": "assign the part to an attribute, model.head = Dense(10)",
    "add_weight": "assign a Parameter to an attribute, self.scale = Parameter(np.ones(3, "
                  "np.float32))",
    "register_parameter": "assign a Parameter to an attribute, self.scale = Parameter(np.ones(3, "
                          "np.float32))",
    "register_buffer": "assign an array to an attribute, self.count = np.zeros(3, np.float32)",
    "register_module": "assign the part to an attribute, model.head = Dense(10)",
    "register_full_backward_hook": "with record(model) as log: ... shows the gradients at each "
                                   "layer",
    "apply": "write the loop, for part in model.modules(): ...",
    "named_children": "write children(), which yields (name, module)",
    "requires_grad": "freeze a module by module.trainable = False, or its parameters alone by "
                     "module.requires_grad_(False)",
    "trainable_weights": "write [p for p in model.parameters() if p.requires_grad]",
    "trainable_variables": "write [p for p in model.parameters() if p.requires_grad]",
    "non_trainable_weights": "write model.buffers(), and [p for p in model.parameters() if not "
                             "p.requires_grad]",
    "weights": "write parameters(), a list, or state_dict(), arrays with their names",
    "variables": "write parameters(), a list, or state_dict(), arrays with their names",
    "get_config": "print(model) shows the layers; model.save(path) writes a Sequential whole",
    "count_params": "write sum(p.size for p in model.parameters()), or see summary()",
    "dtype": "write layer.kernel.dtype, or layer.astype(np.float64) to change it",
    "device": "leave it out, minidl computes on the CPU alone",
    "cuda": "minidl computes on the CPU alone; interop.to_torch(model) goes where GPUs are",
    "cpu": "leave it out, minidl computes on the CPU alone",
    "to": "leave it out, minidl computes on the CPU alone; for another dtype write "
          "model.astype(np.float64)",
    "half": "write model.astype(np.float16)",
    "float": "write model.astype(np.float32)",
    "double": "write model.astype(np.float64)",
    "type": "write model.astype(np.float64)",
    "eval_mode": "write model.eval()",
    "train_mode": "write model.train()",
    "freeze": "write model.trainable = False",
    "unfreeze": "write model.trainable = True",
    "compile": "compile belongs to Sequential; any Module trains by training.fit(model, x, y, "
               "loss=..., optimizer=...)",
    "fit": "fit belongs to Sequential; any Module trains by training.fit(model, x, y, loss=..., "
           "optimizer=...)",
    "evaluate": "evaluate belongs to Sequential; for any Module write training.evaluate(model, x, "
                "y, loss=...)",
    "predict": "predict belongs to Sequential; for any Module write training.predict(model, x)",
    "summary": "summary belongs to Sequential; print(model) shows the parts of any Module",
    "save": "save_weights(path) writes the parameters and buffers of any Module; a Sequential can "
            "be saved whole",
    "load": "load_weights(path) reads what save_weights wrote",
    "call": "write forward, and call the module itself: module(x)"}
DENSE = MODULE | {
    "weight": "write kernel, of shape (inputs, units): the transpose of PyTorch's weight",
    "W": "write kernel",
    "w": "write kernel",
    "b": "write bias",
    "in_features": "write inputs",
    "out_features": "write units",
    "input_dim": "write inputs",
    "seed": "give it at the start, Dense(64, rng=0)",
    "bias_initializer": "the bias starts at 0; write layer.bias.data[...] = values for others",
    "kernel_constraint": "minidl has none: write it as a callback's on_train_batch_end",
    "bias_regularizer": "give the optimizer weight_decay",
    "kernel_regularizer": "give the optimizer weight_decay, SGD(lr=0.1, weight_decay=1e-4) for "
                          "example"}
NORM = MODULE | {
    "weight": "write gamma",
    "bias": "write beta",
    "epsilon": "write eps",
    "num_features": "write len(layer.gamma), once the layer has seen an input",
    "axis": "features are axis 1, images have the shape (n, channels, height, width)",
    "center": "write affine, for gamma and beta together",
    "scale": "write affine, for gamma and beta together",
    "elementwise_affine": "write affine",
    "moving_mean": "write running_mean",
    "moving_variance": "write running_var",
    "moving_var": "write running_var",
    "num_batches_tracked": "write updates",
    "track_running_stats": "write frozen_statistics"}
DROPOUT = MODULE | {"p": "write rate", "seed": "write rng"}
ACTIVATION = MODULE | {"activation": "write function"}
SEQUENTIAL = MODULE | {
    "load": "write model = Sequential.load(path), which makes a new model; load_weights(path) "
            "fills this one",
    "load_model": "write model = Sequential.load(path)",
    "append": "write model.add(layer), and compile again",
    "get_layer": "write model[0], or {layer.name: layer for layer in model}[name]",
    "fit_generator": "write the loop, for xb, yb in loader: model.train_on_batch(xb, yb); arrays "
                     "go to model.fit(x, y)",
    "test_on_batch": "write model.evaluate(x, y)",
    "predict_on_batch": "write model.predict(x)",
    "predict_classes": "write model.predict(x).argmax(axis=1)",
    "predict_proba": "write model.predict(x), for a model that ends in Activation('softmax')",
    "seed": "give it at the start, Sequential([...], seed=0)",
    "rng": "give a seed at the start, Sequential([...], seed=0)",
    **dict.fromkeys(("epochs", "batch_size", "callbacks", "verbose", "shuffle"),
                    "give it to model.fit(x, y, ...)"),
    "lr": "write model.optimizer.lr",
    "learning_rate": "write model.optimizer.lr",
    "to_json": "write model.save(path), which keeps layers and weights in one file",
    "output_shape": "see summary(), or model.predict(x[:1]).shape"}

# Arguments of constructors
ARGUMENTS = {
    "name": "set it afterwards, layer.name = 'hidden'",
    "dtype": "weights are float32; write model.astype(np.float64) for others",
    "device": "leave it out, minidl computes on the CPU alone",
    "trainable": "set it afterwards, layer.trainable = False",
    "seed": "write rng=0",
    "in_features": "leave it out, or write input_shape=784",
    "input_dim": "write input_shape=784",
    "batch_input_shape": "write input_shape, without the batch axis"}
DENSE_ARGUMENTS = ARGUMENTS | {
    "out_features": "write Dense(64)",
    "bias": "write use_bias=False",
    "bias_initializer": "the bias starts at 0; write layer.bias.data[...] = values for others",
    "kernel_init": "write kernel_initializer",
    "kernel_regularizer": "give the optimizer weight_decay, SGD(lr=0.1, weight_decay=1e-4) for "
                          "example"}
NORM_ARGUMENTS = ARGUMENTS | {
    "epsilon": "write eps, which is 1e-5 by default; Keras' is 1e-3",
    "num_features": "leave it out, the number of features is found out from the input",
    "normalized_shape": "leave it out, the number of features is found out from the input",
    "axis": "leave it out; features are axis 1, images have the shape (n, channels, height, width)",
    "center": "write affine, for gamma and beta together",
    "scale": "write affine, for gamma and beta together",
    "elementwise_affine": "write affine",
    "track_running_stats": "set layer.frozen_statistics = True afterwards"}
FLATTEN_ARGUMENTS = ARGUMENTS | {
    "start_dim": "leave it out, all axes but the first become one",
    "data_format": "leave it out, the numbers stay in the order they have"}
DROPOUT_ARGUMENTS = ARGUMENTS | {"p": "write rate, Dropout(0.5)", "inplace": "leave it out"}
ACTIVATION_ARGUMENTS = ARGUMENTS | {
    "activation": "write Activation('relu')",
    "inplace": "leave it out",
}
SEQUENTIAL_ARGUMENTS = {"name": "leave it "
                                "out", "trainable": "set it afterwards, model.trainable = False",
                        "rng": "write seed=0"}

# Names in the package itself
_FUNCTION = "functions of Tensors are in minidl.functional: from minidl import functional as F"
PACKAGE = {
    "Linear": "write Dense(64, input_shape=784) for Linear(784, 64)",
    "BatchNormalization": "write BatchNorm()",
    "BatchNorm1d": "write BatchNorm(), which finds the number of features out",
    "BatchNorm2d": "write BatchNorm(), which takes images (n, channels, height, width) as well",
    "LayerNormalization": "write LayerNorm()",
    "Conv1D": "minidl has no convolution: put Flatten() before Dense",
    "Conv2D": "minidl has no convolution: put Flatten() before Dense",
    "Conv2d": "minidl has no convolution: put Flatten() before Dense",
    "MaxPooling2D": "minidl has no pooling: put Flatten() before Dense",
    "MaxPool2d": "minidl has no pooling: put Flatten() before Dense",
    "Embedding": "minidl has no embedding: np.eye(classes)[y] makes one-hot rows for a Dense",
    "InputLayer": "write Input(784), or give the first layer input_shape=784",
    "Model": "write Sequential([...]), or subclass Module and write forward",
    "Layer": "subclass Module and write forward",
    "ModuleList": "write a list, self.blocks = [Dense(64), Dense(64)]: its layers are found",
    "ModuleDict": "write a dict, self.heads = {'a': Dense(2)}: its layers are found",
    "nn": "layers are in minidl itself: from minidl import Dense, BatchNorm",
    "keras": "layers and Sequential are in minidl itself: from minidl import Dense, Sequential",
    "models": "write from minidl import Sequential",
    "losses": "compile takes names, loss='cross_entropy'; the functions are in minidl.functional",
    "TopKCategoricalAccuracy": "write metrics=[top_k_accuracy(5)], from minidl.metrics",
    "metrics": "compile takes names, metrics=['accuracy']",
    "optimizers": "write from minidl import optim",
    "datasets": "write from minidl import data, and data.load('digits')",
    "utils": "to_categorical is np.eye(classes)[y]; batches are in minidl.data",
    "load_model": "write Sequential.load(path)",
    "tensor": "write Tensor([1.0, 2.0])",
    "Variable": "write Tensor(values, requires_grad=True), or Parameter(values) in a Module",
    "manual_seed": "give a seed where random numbers are drawn, Sequential([...], seed=0)",
    "set_seed": "give a seed where random numbers are drawn, Sequential([...], seed=0)",
    **dict.fromkeys(("relu", "sigmoid", "softmax", "tanh", "cross_entropy"), _FUNCTION),
    **{cls: f"write Activation({name!r}), or Dense(64, {name!r})" for cls, name in {
        "ReLU": "relu", "LeakyReLU": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh",
        "Softplus": "softplus", "GELU": "gelu_exact", "ELU": "elu", "SiLU": "silu", "Softmax": "softmax", "LogSoftmax": "log_softmax",
        "Identity": "linear"}.items()},
    **{cls: f"write optim.{cls}" for cls in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop")},
    **dict.fromkeys(("CrossEntropyLoss", "CategoricalCrossentropy"), "write loss='cross_entropy', or "
                    "functional.cross_entropy(logits, y); with an option "
                    "functools.partial(functional.cross_entropy, label_smoothing=0.1)"),
    "MSELoss": "write loss='mse', or functional.mse_loss(outputs, y)",
    "L1Loss": "write loss='mae', or functional.l1_loss(outputs, y)",
    "HuberLoss": "write loss='huber', or functional.huber_loss(outputs, y)",
    "BCELoss": "write loss='binary_crossentropy', or functional.binary_cross_entropy(outputs, y)",
    "BCEWithLogitsLoss": "write loss='binary_cross_entropy_with_logits'"}
# Attributes and methods of Tensors
TENSOR = {
    "cpu": "every Tensor is in the CPU's memory; use x itself, or x.numpy() for the array",
    "cuda": "minidl runs on the CPU; minidl.interop.to_torch(model) builds the model in PyTorch, "
            "for a GPU",
    "to": "use x.astype(np.float32) for another dtype; minidl runs on the CPU",
    "float": "use x.astype(np.float32)",
    "double": "use x.astype(np.float64)",
    "half": "use x.astype(np.float16)",
    "long": "use x.astype(np.int64)",
    "int": "use x.astype(np.int64)",
    "view": "use x.reshape(...)",
    "flatten": "use x.reshape(-1), or the layer Flatten()",
    "permute": "use x.transpose(...)",
    "t": "use x.T",
    "mm": "use a @ b",
    "matmul": "use a @ b",
    "pow": "use x ** n",
    "add": "use a + b",
    "sub": "use a - b",
    "mul": "use a * b",
    "div": "use a / b",
    "zero_": "use p.grad = None to forget a gradient, or p.data[...] = 0 to set the values",
    "add_": "write p.data += ... (outside a forward pass that still needs the old values)",
    "copy_": "write p.data[...] = values",
    "fill_": "write p.data[...] = value",
    "clone": "use Tensor(x.data.copy()), which is cut off from the graph, or x * 1, which is not",
    "copy": "use Tensor(x.data.copy()), which is cut off from the graph, or x * 1, which is not",
    "requires_grad_": "set x.requires_grad = True before x is used",
    "retain_grad": "use grad(loss, x), which takes results as well as leaves",
    "grad_fn": "use x.op, the op that made x",
    "is_leaf": "use x.op is None",
    "argmin": "use x.data.argmin(...), as it has no gradient",
    **{name: f"use F.{name}(x, ...) from minidl.functional" for name in (
        "std", "norm", "prod", "cumsum", "squeeze", "split", "tile")},
    **{name: f"use F.{name}(x) from minidl.functional" for name in (
        "sin", "cos", "log1p", "square", "erf")},
    "pow_": "write x ** n",
    "clamp": "use F.clip(x, low, high) from minidl.functional",
    "clip": "use F.clip(x, low, high) from minidl.functional",
    "relu": "use F.relu(x) from minidl.functional",
    "sigmoid": "use F.sigmoid(x) from minidl.functional",
    "tanh": "use F.tanh(x) from minidl.functional",
    "softmax": "use F.softmax(x) from minidl.functional",
    "log_softmax": "use F.log_softmax(x) from minidl.functional",
    "unsqueeze": "use F.expand_dims(x, axis) from minidl.functional",
    "expand": "use F.broadcast_to(x, shape=...) from minidl.functional",
    "values": "use x.data",
    "value": "use x.data",
    "device": "minidl runs on the CPU",
    "assign": "write p.data[...] = values",
    "assign_sub": "write p.data -= ...",
}
# Functions of minidl.functional
FUNCTIONAL = {
    "mse": "use F.mse_loss(prediction, target)",
    "mae": "use F.l1_loss(prediction, target)",
    "smooth_l1_loss": "use F.huber_loss(prediction, target), the same for beta=1",
    "nll_loss": "use F.cross_entropy(logits, labels), which takes the logits before log_softmax",
    "binary_crossentropy": "use F.binary_cross_entropy(probabilities, targets)",
    "sparse_categorical_crossentropy": "use F.categorical_crossentropy(probabilities, labels), "
                                       "which takes class numbers too",
    "CrossEntropyLoss": "use F.cross_entropy(logits, labels)",
    "MSELoss": "use F.mse_loss(prediction, target)",
    "BCELoss": "use F.binary_cross_entropy(probabilities, targets)",
    "BCEWithLogitsLoss": "use F.binary_cross_entropy_with_logits(logits, targets)",
    "dropout": "use the layer Dropout(rate)",
    "normalize": "divide by F.sqrt(F.sum(x * x, axis=-1, keepdims=True))",
    "one_hot": "use minidl.data.one_hot(y, classes)",
    "clamp": "use F.clip(x, low, high)",
    "pow": "use F.power(a, b) or a ** b",
    "cat": "use F.concatenate([a, b], axis=0)",
    "mm": "use a @ b",
    "dot": "use a @ b",
    "add": "use a + b",
    "subtract": "use a - b",
    "multiply": "use a * b",
    "divide": "use a / b",
    "unsqueeze": "use F.expand_dims(x, axis)",
    "chunk": "use F.split(x, parts, axis)",
    "swish": "use F.silu(x)",
}
# Attributes and arguments of optimizers
OPTIMIZER = {
    "param_groups": "set optimizer.lr for all parameters; made from a list of dicts, it has "
                    "optimizer.optimizers, one for each group",
    "params": "use optimizer.parameters",
    "variables": "use optimizer.parameters",
    "iterations": "use optimizer.steps",
    "minimize": "write optimizer.zero_grad(), loss.backward(), optimizer.step()",
    "apply_gradients": "set p.grad for each parameter p, then call optimizer.step()",
    "get_config": "the settings are attributes: optimizer.lr, optimizer.momentum ...",
    "beta_1": "write betas=(0.9, 0.999)",
    "beta_2": "write betas=(0.9, 0.999)",
    "epsilon": "write eps=...",
    "rho": "write alpha=..., the weight of the old average",
    "decay": "give lr a schedule: lr=schedules.ExponentialDecay(0.1, steps=1000)",
    "amsgrad": "minidl has Adam as published in 2015, without amsgrad",
    "lr_decay": "give lr a schedule: lr=schedules.ExponentialDecay(0.1, steps=1000)",
    "dampening": "minidl's momentum is PyTorch's with dampening=0",
}


class Word:
    """A name from another library as an attribute: whoever reads it learns what to write here.

    Such attributes and not `__getattr__`, with which Python looks up all others at half the speed.
    """

    def __init__(self, name, words):
        self.name = name
        self.words = words

    def __get__(self, instance, owner):
        raise unknown(owner.__name__, self.name, self.words)


def teach(cls, words):
    """Give a class a Word for each name that neither it nor a base class of its own defines."""
    for name in words:
        defined = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
        own = [value for value in defined if not isinstance(value, Word)]
        setattr(cls, name, own[0] if own else Word(name, words))


def known_names(instance):
    """What `dir` lists: the attributes that are there, without the words from habit."""
    cls = type(instance)
    return [name for name in object.__dir__(instance)
            if not isinstance(getattr_static(cls, name, None), Word)]


def unknown(what, name, words):
    """The AttributeError for a name that `what` lacks; words: {word of another library: what to
    write here}.
    """
    text = f"{what} has no attribute {name!r}"
    return AttributeError(f"{text}: {words[name]}" if name in words else text, name=name)
