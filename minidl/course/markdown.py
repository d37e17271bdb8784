"""Markdown in blocks, and Python code in coloured pieces, for a terminal and for a page."""

import io
import keyword
import re
import tokenize

ANSI = {
    "heading": "1;4",
    "bold": "1",
    "italic": "3",
    "code": "36",
    "keyword": "1;34",
    "string": "32",
    "number": "35",
    "comment": "90",
}
# As in CommonMark, a list may begin in the middle of a paragraph, but not with a number above 1
# that wrapping put there.
BLOCK = re.compile(r"""
    ^```.*\n (?P<code> (?:.*\n)*? ) ```$
  | ^\$\$ (?P<math> [^$]+ ) \$\$$
  | ^(?P<heading> \#+\ .* )$
  | ^<details><summary>(?P<details> .*? )</summary>$
  | ^(?P<end> </details> )$
  | (?P<table> (?:^\|.*\n)+ )
  | (?P<item> ^(?:-|\d+\.)\ .*\n (?:^(?!-\ |\d+\.\ ).+\n)* )
  | (?P<paragraph> ^.+\n (?:^(?!```|\$\$|\#+\ |\||-\ |1\.\ ).+\n)* )""", re.MULTILINE | re.VERBOSE)
INLINE = re.compile(
    r"""
    `(?P<code> [^`]+ )` | \$(?P<math> [^$]+ )\$ | \[(?P<link> [^]]+ )\]\((?P<url> [^)\s]+ )\)
  | \*\*(?P<bold> (?=\S).+?(?<=\S) )\*\* | \*(?P<italic> [^*\s](?:[^*]*[^*\s])? )\*""",
    re.DOTALL | re.VERBOSE,
)


def blocks(markdown):
    """(kind, text) of each block of a text in Markdown.

    kind: heading, paragraph, item (of a list), table, code or math; details, with its summary,
    where something folded begins, and end where it ends.
    """
    return [
        (match.lastgroup, match[match.lastgroup].rstrip())
        for match in BLOCK.finditer(markdown + "\n")
    ]


def highlight(code):
    """(kind, text) of each piece of Python code.

    kind: keyword, string, number or comment, and "" for the rest.
    """
    starts, done = [0, 0], 0
    for line in code.split("\n"):  # splitlines() would also split at form feeds
        starts.append(starts[-1] + len(line) + 1)
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            kind = tokenize.tok_name[token.type].lower()
            kind = (
                "keyword"
                if keyword.iskeyword(token.string)
                else "string"
                if kind[1:7] == "string"
                else kind
            )
            if kind in ANSI:
                start, end = (starts[row] + column for row, column in (token.start, token.end))
                yield from (("", code[done:start]), (kind, code[start:end]))
                done = end
    except (tokenize.TokenError, SyntaxError):
        pass  # what is no Python is shown as it is
    yield "", code[done:]
