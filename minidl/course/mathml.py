"""The TeX formulas of the lessons as MathML, which browsers draw by themselves."""

import re
from html import escape

LETTERS = dict(
    zip(
        r"alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi pi rho "
        r"sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega ell "
        r"infty partial nabla mathbb{R} mathbb{E} mathcal{N} mathcal{L}".split(),
        "αβγδεεζηθκλμνξπρστφφχψωΓΔΘΛΠΣΦΨΩℓ∞∂∇ℝ𝔼𝒩ℒ",
    )
)
OPERATORS = dict(
    zip(
        r"cdot times odot circ le leq ge geq ll gg ne neq approx sim equiv propto to rightarrow "
        r"leftarrow mapsto in notin subset forall exists pm mp ldots dots cdots mid | { } langle "
        r"rangle top int % _".split(),
        "⋅×⊙∘≤≤≥≥≪≫≠≠≈∼≡∝→→←↦∈∉⊂∀∃±∓……⋯∣‖{}⟨⟩⊤∫%_",
    )
) | {"-": "−", "'": "′", "*": "∗"}
FUNCTIONS = "log ln exp sin cos tanh Pr".split()
# their scripts go below and above, not beside
LIMITS = {"sum": "∑", "prod": "∏", "max": "max", "min": "min", "lim": "lim"}
ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~", "dot": "˙", "vec": "→"}
SPACES = {",": 0.17, ";": 0.28, " ": 0.25, "quad": 1, "qquad": 2}
TOKEN = re.compile(
    r"\\(?:text|mathrm|operatorname|mathbb|mathcal)\{[^{}]*\}"
    r"|\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|[^\s\\]",
    re.DOTALL,
)


def mathml(tex, large=False):
    """A formula in TeX as MathML. large: in the size of a formula on a line of its own.

    Raises ValueError for what is in none of the tables.
    """
    tokens = TOKEN.findall(tex)[::-1]  # the next one last, where pop() takes it
    try:
        return f'<math displaystyle="{str(large).lower()}">{_row(tokens)}</math>'
    except (IndexError, KeyError) as error:
        raise ValueError(f"cannot typeset the formula {tex!r}: {error}") from None


def _row(tokens, end=None):
    made = []
    while tokens and tokens[-1] != end:
        made.append(_scripted(tokens))
    if end:
        tokens.pop()
    return f"<mrow>{''.join(made)}</mrow>"


def _scripted(tokens):
    """The next atom with its subscript and superscript."""
    name = tokens[-1].lstrip("\\")
    base, scripts = _atom(tokens), {}
    while tokens and tokens[-1] in ("_", "^"):
        sign = tokens.pop()
        scripts[sign] = _atom(tokens)
    below, above = ("under", "over") if name in LIMITS else ("sub", "sup")
    tag = "m" + below * ("_" in scripts) + above * ("^" in scripts)
    made = f"<{tag}>{base}{scripts.get('_', '')}{scripts.get('^', '')}</{tag}>" if scripts else base
    gap = name in (*FUNCTIONS, *LIMITS) and tokens and tokens[-1] not in ("(", "\\left")
    return made + '<mspace width="0.17em"/>' * bool(gap)


def _atom(tokens):
    token = tokens.pop()
    name = token.removeprefix("\\")
    if token == "{":
        return _row(tokens, "}")
    if token == r"\frac":
        # in full size, because the small size usual in books is illegible on a web page
        return f'<mfrac displaystyle="true">{_atom(tokens)}{_atom(tokens)}</mfrac>'
    if token == r"\sqrt":
        return f"<msqrt>{_atom(tokens)}</msqrt>"
    if token == r"\left":
        return f"<mrow>{_fence(tokens)}{_row(tokens, chr(92) + 'right')}{_fence(tokens)}</mrow>"
    if token[0] != "\\":
        if token in "}_^&":
            raise KeyError(token)
        tag = (
            "mn"
            if token[0].isdecimal() or token == "."
            else "mi"
            if token.isalpha()
            else 'mo stretchy="false"'
        )
        shown = token if token == "|" else OPERATORS.get(token, token)  # \| is the other sign
        return f"<{tag}>{escape(shown)}</{tag[:2]}>"
    if name in LETTERS or name in FUNCTIONS:
        return f"<mi>{LETTERS.get(name, name)}</mi>"
    if name in ACCENTS:
        return (
            f'<mover accent="true">{_atom(tokens)}<mo stretchy="false">{ACCENTS[name]}</mo></mover>'
        )
    if name in SPACES:
        return f'<mspace width="{SPACES[name]}em"/>'
    if name in LIMITS:
        return f'<mo movablelimits="true" lspace="0.1em" rspace="0">{LIMITS[name]}</mo>'
    if "{" in name[1:] and not name.startswith(("mathbb", "mathcal")):
        return f"<mtext>{escape(name[name.index('{') + 1:-1]).replace(' ', chr(160))}</mtext>"
    return f'<mo stretchy="false">{escape(OPERATORS[name])}</mo>'


def _fence(tokens):
    name = tokens.pop().removeprefix("\\")
    return "" if name == "." else f"<mo>{escape(OPERATORS.get(name, name))}</mo>"
