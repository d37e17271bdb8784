"""Words typed from habit, as Keras, PyTorch or NumPy have them, and minidl's word for each.

Each table holds {word of another library: what to write here}; the tables are in `habits.ini`.
"""

from configparser import RawConfigParser
from inspect import getattr_static
from pathlib import Path

_words = RawConfigParser(delimiters=":")
_words.optionxform = str  # names as they are typed: Linear is not linear
_words.read(Path(__file__).with_suffix(".ini"), encoding="utf-8")
_tables = {
    name: {word: " ".join(text.split()) for word, text in _words[name].items()}
    for name in _words.sections()
}

# Attributes of any module, and of the kinds of layers
MODULE = _tables["MODULE"]
DENSE = MODULE | _tables["DENSE"]
NORM = MODULE | _tables["NORM"]
DROPOUT = MODULE | _tables["DROPOUT"]
ACTIVATION = MODULE | _tables["ACTIVATION"]
SEQUENTIAL = MODULE | _tables["SEQUENTIAL"]
# Arguments of constructors
ARGUMENTS = _tables["ARGUMENTS"]
DENSE_ARGUMENTS = ARGUMENTS | _tables["DENSE_ARGUMENTS"]
NORM_ARGUMENTS = ARGUMENTS | _tables["NORM_ARGUMENTS"]
FLATTEN_ARGUMENTS = ARGUMENTS | _tables["FLATTEN_ARGUMENTS"]
DROPOUT_ARGUMENTS = ARGUMENTS | _tables["DROPOUT_ARGUMENTS"]
ACTIVATION_ARGUMENTS = ARGUMENTS | _tables["ACTIVATION_ARGUMENTS"]
SEQUENTIAL_ARGUMENTS = _tables["SEQUENTIAL_ARGUMENTS"]
COMPILE_ARGUMENTS = _tables["COMPILE_ARGUMENTS"]  # those of a method
# The package itself, Tensors, functions, optimizers (attributes and arguments)
PACKAGE = _tables["PACKAGE"]
TENSOR = _tables["TENSOR"]
FUNCTIONAL = _tables["FUNCTIONAL"]
OPTIMIZER = _tables["OPTIMIZER"]


class Word:
    """A name from another library as an attribute: reading it says what to write instead.

    Attributes rather than `__getattr__`, which would halve the speed of all other look-ups.
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
    """The AttributeError for a name that `what` lacks; words: {another library's word: advice}."""
    text = f"{what} has no attribute {name!r}"
    return AttributeError(f"{text}: {words[name]}" if name in words else text, name=name)
