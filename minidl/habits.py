"""Words that people type from habit, because Keras, PyTorch or NumPy has them, and minidl's word for the same thing."""


def unknown(what, name, words):
    """The AttributeError for a name that `what` lacks; words: {word of another library: what to write here}."""
    text = f"{what} has no attribute {name!r}"
    return AttributeError(f"{text}: {words[name]}" if name in words else text, name=name)
