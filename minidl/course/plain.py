"""The TeX formulas of the lessons as one line of Unicode text for a terminal: γ, σ²_B, x̂, Σ."""

from .mathml import FUNCTIONS, LETTERS, LIMITS, OPERATORS, SPACES, TOKEN

SUPERSCRIPTS = dict(zip("0123456789+−-()nT", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ⁿᵀ"))
SUBSCRIPTS = dict(zip("0123456789+−-()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₍₎"))
# each is drawn over the letter before it
MARKS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307", "vec": "\u20d7"}
LARGE = {"sum": "Σ", "prod": "Π"}
SPACED = set("=<>+−±∓⋅×⊙∘≤≥≪≫≠≈∼≡∝→←↦∈∉⊂")
OPEN, CLOSE = set("([{⟨"), set(")]}⟩,.;!")


def plain(tex):
    """A formula in TeX as text.

    Raises ValueError for what is in none of the tables.
    """
    tokens = [(match[0], match.start() > 0 and tex[match.start() - 1].isspace())
              for match in TOKEN.finditer(tex)][::-1]  # the next one last, where pop() takes it
    try:
        return _row(tokens)
    except (IndexError, KeyError) as error:
        raise ValueError(f"cannot write the formula {tex!r} as text: {error}") from None


def _row(tokens, end=None):
    """Atoms up to the end, with the spaces that a reader needs."""
    made, before = "", ""
    while tokens and tokens[-1][0] != end:
        spaced = tokens[-1][1] or before.startswith("/")
        name = tokens[-1][0]
        text = _scripted(tokens)
        sign = text[0] if text and text[0] in SPACED else ""
        unary = sign in ("−", "+", "±") and (not made or made[-1] in " ([{,|")
        if sign and not unary:
            made = made.rstrip() + f" {text} "
        elif spaced and made and made[-1] not in "([{⟨ −" and text[:1] not in CLOSE:
            made += " " + text
        else:
            made += text
        if text == ",":
            made += " "
        # what follows a fraction or a function stands apart from it
        apart = name == r"\frac" or name[1:] in (*FUNCTIONS, *LIMITS)
        before = "/" if apart and not (tokens and tokens[-1][0] in ("(", r"\left", ",")
                                       and name != r"\frac") else ""
    if end:
        tokens.pop()
    return made.strip()


def _scripted(tokens):
    """The next atom with its superscript and subscript, in this order: σ²_B."""
    base, scripts = _atom(tokens), {}
    while tokens and tokens[-1][0] in ("_", "^"):
        sign = tokens.pop()[0]
        scripts[sign] = _atom(tokens)
    above, below = scripts.get("^", ""), scripts.get("_", "")
    small = bool(above) and all(letter in SUPERSCRIPTS for letter in above)
    above = _script("^", above, SUPERSCRIPTS)
    below = _script("_", below, SUBSCRIPTS)
    return base + (above + below if small else below + above)


def _script(sign, text, table):
    if text and all(letter in table for letter in text):
        return "".join(table[letter] for letter in text)
    if not text or text.isalnum() or len(text) == 1:
        return sign + text if text else ""
    return f"{sign}({text.replace(' ', '')})"


def _atom(tokens):
    token = tokens.pop()[0]
    name = token.removeprefix("\\")
    if token == "{":
        return _row(tokens, "}")
    if token == r"\frac":
        above, below = _atom(tokens), _atom(tokens)
        return f"{_grouped(above, ' /')}/{_grouped(below, ' /⋅')}"
    if token == r"\sqrt":
        return f"√{_grouped(_atom(tokens), ' /^_', longest=2)}"
    if token == r"\left":
        return _fence(tokens) + _row(tokens, r"\right") + _fence(tokens)
    if token[0] != "\\":
        if token in "}_^&":
            raise KeyError(token)
        return "|" if token == "|" else OPERATORS.get(token, token)
    if name in MARKS:
        base = _atom(tokens)
        return base[:1] + MARKS[name] + base[1:]
    if name in SPACES:
        return "   " if "quad" in name else " "
    if name in LARGE or name in LIMITS or name in FUNCTIONS:
        return LARGE.get(name, name)
    if name in LETTERS:
        return LETTERS[name]
    if "{" in name[1:]:
        return name[name.index("{") + 1:-1]
    return OPERATORS[name]


def _grouped(text, signs, longest=1000):
    """The text, in brackets if it has one of these signs or is long, so that it reads as a unit."""
    whole = text.startswith(("√(", "‖")) and text.find(text[-1]) == len(text) - 1
    reaches = any(sign in text for sign in signs) or len(text) > longest
    return f"({text})" if reaches and not whole else text


def _fence(tokens):
    name = tokens.pop()[0].removeprefix("\\")
    return "" if name == "." else OPERATORS.get(name, name)
