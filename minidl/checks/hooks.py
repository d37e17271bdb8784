"""Callbacks whose methods fit would never call, or could not."""

import dis
import inspect
import re


def check_callbacks(callbacks, base):
    """The callbacks, instances of the class base, as a list; TypeError for anything else.

    Also for methods that fit would never call, or could not.
    """
    callbacks = [] if callbacks is None else callbacks
    if not isinstance(callbacks, (list, tuple)) or not all(
        isinstance(callback, base) for callback in callbacks
    ):
        raise TypeError("callbacks is a list of Callback objects, [EarlyStopping(patience=3)] for "
                        f"example, got {callbacks!r}")
    hooks = [name for name in vars(base) if name.startswith("on_")]
    for callback in callbacks:
        kind = type(callback).__name__
        for name in dir(callback):
            if name not in hooks and _looks_like_a_hook(name, hooks):
                raise TypeError(f"{kind}.{name} would never be called; fit calls "
                                f"{', '.join(hooks)}")
        for name in hooks:
            hook, arguments = (
                getattr(callback, name),
                ({},) if name.startswith("on_train_") and "batch" not in name else (0, {}),
            )
            usual = (
                "logs"
                if len(arguments) == 1
                else "batch, logs"
                if "batch" in name
                else "epoch, logs"
            )
            if (
                not callable(hook)
                or inspect.iscoroutinefunction(hook)
                or inspect.isgeneratorfunction(hook)
            ):
                raise TypeError(f"{kind}.{name} must be a plain function or method of ({usual}), "
                                f"got {hook!r}")
            try:
                inspect.signature(hook).bind(*arguments)
            except ValueError:  # some built-in functions do not tell what they take
                pass
            except TypeError:
                raise TypeError(f"{kind}.{name} is called with ({usual}), but takes "
                                f"{inspect.signature(hook)}") from None
    return list(callbacks)


def _looks_like_a_hook(name, hooks):
    """on_batch_end, on_test_begin, onEpochEnd, epoch_end ..., but not on_improvement."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    if words.startswith("on_"):
        return not name.startswith("_") and re.search(
            "begin|start|end|epoch|batch|step|train|test|predict|valid", words
        )
    return not name.startswith("_") and "on_" + words in hooks


def may_add_numbers(callback):
    """Whether on_epoch_end might write into the logs: not if it never uses that argument."""
    kind = type(callback)
    if kind.__module__ == "minidl.callbacks" and kind.__name__ != "LambdaCallback":
        return False
    hook = callback.on_epoch_end
    function, place = (hook.__func__, 2) if inspect.ismethod(hook) else (hook, 1)
    code = getattr(function, "__code__", None)
    if code is None or code.co_argcount <= place:
        return True
    logs = code.co_varnames[place]
    return any(
        logs == step.argval or isinstance(step.argval, tuple) and logs in step.argval
        for step in dis.get_instructions(code)
    )
