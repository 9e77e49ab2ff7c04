"""Formulas of docstrings as MathML: `theta <- theta + eta * sum_i w_i Delta_i`, which is readable in a terminal.

    text      = formula or anything, one after the other; what is no formula stays text
    formula   = sum (sign sum)+, sign one of <- -> = != ~ < > <= >= in ..
              | sum, in which there is an index, a power or a Greek letter
    sum       = product ((+ | -) product)*
    product   = quotient (* quotient)*
    quotient  = chain (" / " chain)*, a fraction of all that stands beside the line without a sign
    chain     = factor factor ..., which are multiplied
    factor    = (grad | sum_i | ...) or an atom with _sub, ^sup, ' and a narrow /atom
    atom      = a number, a letter, a name, (list), [list], {list}, |sum|

Names are letters, Greek ones by their names, a number close behind which is an index, `ghat` and `xbar` for accents,
the functions and names of `KNOWN`, the options of the class that is described, and whatever stands before a
parenthesis. Two spaces end a formula.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from html import escape

ALPHABET = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho final sigma tau upsilon "
    "phi chi psi omega"
)
CAPITALS = {"Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Omega": "Ω"}
GREEK = {name: chr(code) for code, name in enumerate(ALPHABET.split(), start=0x3B1) if name != "final"} | CAPITALS
SPACE = '<mspace width="0.15em"/>'
"""Between names of several letters that are multiplied."""
LARGE = {"sum": "∑", "prod": "∏"}
BELOW = frozenset(["max", "min", "argmax", "argmin", "mean", "median", "inf"])
"""Functions whose indices stand below them, after which their argument may follow without parentheses."""
KNOWN = frozenset(["log", "ln", "exp", "tanh", "KL", "CE", "BCE", "lr", "dt", "Df"])
"""Names of several letters that are one symbol wherever they stand; others are where a parenthesis follows."""
WORDS = frozenset("aAI")
"""Letters that are words where they stand in no relation."""
INDEXED = re.compile(rf"[_^]|\b(?:{'|'.join([*GREEK, *LARGE, 'grad', 'sqrt'])})\b|^(?!that|what|chat)\w(?:hat|bar)\b")
"""What tells a formula without a relation from words."""
ACCENTS = {"hat": "^", "bar": "¯"}
NO_ACCENTS = frozenset(("that", "what", "chat", "hat", "bar"))
SIGNS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "!=": "≠", "~": "∼", "..": "…", "=": "=", "<": "<", ">": ">"}
CODE = re.compile(r"`[^`]+`|\b\w+ = \"[^\"]*\"")
"""Code within a text: what stands in backticks, and an option that has a text."""
PAIRS = {"(": ")", "[": "]", "{": "}"}
TOKENS = re.compile(
    r"(?P<number>\d[\d,]*\d(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"|(?P<name>[^\W\d_]+)"
    r"|(?P<text>`[^`]*`|\"[^\"]*\")"
    r"|(?P<sign><-|->|<=|>=|!=|\.\.|\|\||[-+*/^_'|()\[\]{}=<>~,;])"
    r"|(?P<other>\S)"
)


class NoFormulaError(Exception):
    """What stands here is no formula."""


@dataclass(frozen=True)
class Token:
    """A piece of a text. before: how many spaces stand before it."""

    kind: str
    text: str
    start: int
    end: int
    before: int


@dataclass(frozen=True)
class Piece:
    """A part of a line. mathml: of a formula; empty: it is the text itself."""

    text: str
    mathml: str


def pieces(line: str, names: Collection[str] = ()) -> list[Piece]:
    """The formulas of a line, and the text between them. names: what else is a name, such as the options of a class."""
    tokens = list(_tokens(line, names))
    found, place, done = list[Piece](), 0, 0
    while place < len(tokens):
        end, mathml = _formula_at(tokens, place, names)
        start, stop = tokens[place].start, tokens[end - 1].end
        if end == place or (end - place == 1 and line[stop : stop + 1] in ("-", "_")):
            place += 1
            continue
        found += [Piece(line[done:start], "")] if start > done else []
        found.append(Piece(line[start:stop], mathml))
        place, done = end, stop
    return found + ([Piece(line[done:], "")] if done < len(line) else [])


def html(line: str, names: Collection[str] = ()) -> str:
    """A line with its formulas as MathML, and its `code` as such."""
    return "".join(piece.mathml or _code(piece.text) for piece in pieces(line, names))


def _code(text: str) -> str:
    return CODE.sub(lambda match: f"<code>{match[0].strip('`')}</code>", escape(text, quote=False))


def _tokens(line: str, names: Collection[str]) -> Iterator[Token]:
    at, end = 0, 0
    long = sorted((name for name in names if "_" in name), key=len, reverse=True)
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        known = next((name for name in long if re.compile(rf"{name}\b").match(line, at)), None)
        match = TOKENS.match(line, at)
        assert match is not None
        text = known or match[0]
        yield Token("name" if known else str(match.lastgroup), text, at, at + len(text), at - end)
        at = end = at + len(text)


def _formula_at(tokens: list[Token], place: int, names: Collection[str]) -> tuple[int, str]:
    """Where the formula ends that begins here, and its MathML; it ends where it begins if there is none."""
    for loose in (False, True):
        parser = _Parser(tokens, place, names, loose=loose)
        try:
            inner = parser.sum() if loose else parser.relation()
        except NoFormulaError:
            continue
        said = " ".join(token.text for token in tokens[place : parser.place])
        if not loose or INDEXED.search(said):
            return parser.place, f'<math><mstyle displaystyle="true">{inner}</mstyle></math>'
    return place, ""


def _row(*parts: str) -> str:
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def _sign(text: str, **attributes: str) -> str:
    said = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<mo{said}>{escape(text)}</mo>"


class _Parser:
    """One formula. Methods return MathML, move `place` behind what they have read, or raise NoFormulaError."""

    def __init__(self, tokens: list[Token], place: int, names: Collection[str], *, loose: bool) -> None:
        self.tokens, self.place, self.start, self.names, self.loose = tokens, place, place, names, loose
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        place = self.place + ahead
        if place >= len(self.tokens):
            return Token("end", "", -1, -1, 0)
        token = self.tokens[place]
        if token.before > 1 and place > self.start:
            return Token("end", "", -1, -1, token.before)
        return token

    def next(self) -> Token:
        token = self.peek()
        self.place += 1
        return token

    def expect(self, text: str) -> None:
        if self.next().text != text:
            raise NoFormulaError

    def sign(self) -> str | None:
        """The sign of a relation that stands here."""
        token = self.peek()
        if token.kind == "name" and token.text == "in" and token.before:
            return "∈"
        return SIGNS.get(token.text) if token.kind == "sign" else None

    def relation(self) -> str:
        """At least one sign; a last one without a right side is left out, and what stands before must be a formula."""
        parts, end = [self.sum()], -1
        while (sign := self.sign()) is not None:
            here = self.place
            self.next()
            try:
                parts += [_sign(sign, form="infix"), self.sum()]
            except NoFormulaError:
                self.place = here
                break
            end = self.place
        if end < 0:
            raise NoFormulaError
        self.place = end
        return _row(*parts)

    def sum(self) -> str:
        parts = list[str]()
        if self.peek().text in ("-", "+") and self.peek(1).before == 0:
            parts.append(_sign("−" if self.next().text == "-" else "+", form="prefix"))
        parts.append(self.product())
        while self.peek().kind == "sign" and self.peek().text in ("+", "-"):
            here = self.place
            sign = _sign("−" if self.next().text == "-" else "+", form="infix")
            try:
                parts += [sign, self.product()]
            except NoFormulaError:
                self.place = here
                break
        return _row(*parts)

    def product(self) -> str:
        parts = [self.quotient()]
        while self.peek().text == "*":
            self.next()
            parts += [_sign("⋅"), self.quotient()]
        return _row(*parts)

    def quotient(self) -> str:
        made = self.chain()
        while self.peek().text == "/" and self.peek().before:
            self.next()
            made = f"<mfrac>{_bare(made)}{_bare(self.chain())}</mfrac>"
        return made

    def chain(self) -> str:
        parts = [self.factor()]
        while True:
            here = self.place
            beside = self.tokens[here - 1].text, self.peek().text
            words = any(text in KNOWN or (text in self.names and len(text) > 1) for text in beside)
            try:
                parts += [SPACE, self.factor()] if words else [self.factor()]
            except NoFormulaError:
                self.place = here
                return _row(*parts)

    def factor(self) -> str:
        token = self.peek()
        if token.kind == "name" and token.text in LARGE:
            self.next()
            return _row(self.indexed(_sign(LARGE[token.text]), below=True), self.factor())
        if token.kind == "name" and token.text == "grad":
            self.next()
            return _row(self.scripts(_sign("∇")), self.factor())
        if token.kind == "name" and token.text == "sqrt" and self.peek(1).text == "(":
            self.next()
            self.next()
            inner = self.sum()
            self.expect(")")
            return self.scripts(f"<msqrt>{inner}</msqrt>")
        made = self.applied()
        if self.peek().text == "/" and not self.peek().before:
            self.next()
            made = f"<mfrac>{_bare(made)}{_bare(self.applied())}</mfrac>"
        return made

    def applied(self) -> str:
        """An atom with its indices; of a function with what stands in brackets at once after it."""
        named = self.peek().kind == "name"
        parts = [self.scripts(self.atom())]
        while named and self.peek().text in ("(", "[") and not self.peek().before:
            parts.append(self.scripts(self.bracketed(self.next().text, argument=True)))
        return _row(*parts)

    def atom(self) -> str:
        token = self.next()
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "name":
            return self.name(token)
        if token.text in PAIRS and token.kind == "sign":
            return self.bracketed(token.text)
        if token.text == "|" and not self.bars:
            self.bars += 1
            inner = self.sum()
            self.expect("|")
            self.bars -= 1
            return _row(_sign("|", form="prefix"), inner, _sign("|", form="postfix"))
        raise NoFormulaError

    def name(self, token: Token) -> str:
        word = token.text
        called = self.peek().text in ("(", "[") and not self.peek().before
        accent = next((accent for accent in ACCENTS if word.endswith(accent) and word.lower() not in NO_ACCENTS), "")
        stem = word.removesuffix(accent)
        if self.loose and word in WORDS and self.peek().text not in ("_", "^", "'", "("):
            raise NoFormulaError
        if word in GREEK:
            made = f"<mi>{GREEK[word]}</mi>"
        elif len(word) == 1:
            made = f"<mi>{word}</mi>"
        elif accent and (len(stem) == 1 or stem in GREEK):
            above = f'<mo stretchy="false">{ACCENTS[accent]}</mo>'
            made = f'<mover accent="true"><mi>{GREEK.get(stem, stem)}</mi>{above}</mover>'
        elif word in KNOWN or word in self.names or called or (word in BELOW and self.peek().text == "_"):
            made = f'<mi mathvariant="normal">{word}</mi>'
        else:
            raise NoFormulaError
        if (word in GREEK or len(word) == 1) and self.peek().kind == "number" and not self.peek().before:
            made = f"<msub>{made}<mn>{self.next().text}</mn></msub>"
        if word in BELOW and not called:
            return _row(self.indexed(made, below=True), self.factor())
        return made

    def bracketed(self, opening: str, *, argument: bool = False) -> str:
        """A list within brackets, of which the first has been read. Of an interval, the other may be of another kind.

        argument: it is a function's, which may be any word.
        """
        bars, self.bars = self.bars, 0
        parts = [_sign(opening, form="prefix"), self.item(argument)]
        while self.peek().text in (",", ";", "||"):
            sign = self.next().text
            parts += [_sign("∥" if sign == "||" else sign, separator=str(sign != "||").lower()), self.item(argument)]
        closing = self.next().text
        if closing not in (PAIRS[opening], {"(": "]", "[": ")"}.get(opening)):
            raise NoFormulaError
        self.bars = bars
        if len(parts) == 2 and parts[1].startswith("<mfrac>") and not argument and self.peek().text not in ("^", "_"):
            return parts[1]  # a line of its own says what belongs together
        return _row(*parts, _sign(closing, form="postfix"))

    def item(self, argument: bool = False) -> str:
        after = self.peek(1).text
        word = self.peek().text if self.peek().kind == "name" else ""
        if argument and len(word) > 1 and word not in GREEK and after in (",", ")", "||"):
            return f'<mi mathvariant="normal">{self.next().text}</mi>'
        parts = [self.sum()]
        while (sign := self.sign()) is not None:
            self.next()
            parts += [_sign(sign, form="infix"), self.sum()]
        return _row(*parts)

    def scripts(self, base: str) -> str:
        return self.indexed(base, below=False)

    def indexed(self, base: str, *, below: bool) -> str:
        """A base with its _index, ^power, primes, and the + of a value that is to come."""
        under, over = "", ""
        while True:
            token = self.peek()
            if token.before or token.kind != "sign":
                break
            if token.text == "_" and not under:
                self.next()
                under = self.script()
            elif token.text == "^" and not over:
                self.next()
                over = self.script()
            elif token.text == "'":
                self.next()
                over += "<mo>′</mo>"
            elif token.text == "+" and self.peek(1).before and under:
                self.next()
                over += "<mo>+</mo>"
            else:
                break
        if under and over:
            tag = "munderover" if below else "msubsup"
            return f"<{tag}>{base}{_row(under)}{_row(over)}</{tag}>"
        if under:
            return f"<munder>{base}{under}</munder>" if below else f"<msub>{base}{under}</msub>"
        return f"<msup>{base}<mrow>{over}</mrow></msup>" if over else base

    def script(self) -> str:
        """An index or a power: a number, letters one beside the other, a word, or anything in brackets."""
        token = self.next()
        if token.before:
            raise NoFormulaError
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "name":
            if token.text in GREEK:
                return f"<mi>{GREEK[token.text]}</mi>"
            letters = [f"<mi>{letter}</mi>" for letter in token.text]
            return _row(*letters) if len(letters) < 3 else f"<mtext>{token.text}</mtext>"
        if token.text in ("(", "{"):
            return self.words(PAIRS[token.text])
        raise NoFormulaError

    def words(self, closing: str) -> str:
        """What stands within the brackets of an index, in which words are text: `sum_(i arrived in (t, t + 1])`."""
        parts = list[str]()
        while self.peek().text != closing:
            here = self.place
            try:
                parts.append(self.item())
            except NoFormulaError:
                self.place = here
                token = self.next()
                if token.kind == "end":
                    raise
                text = "&#x2009;∈&#x2009;" if token.text == "in" else escape(token.text)
                parts.append(f"<mtext>&#xA0;{text}&#xA0;</mtext>" if token.kind == "name" else _sign(token.text))
        self.next()
        return _row(*parts)


def _bare(made: str) -> str:
    """What stands above or below the line of a fraction, without the parentheses that only text needs."""
    opening, closing = '<mrow><mo form="prefix">(</mo>', '<mo form="postfix">)</mo></mrow>'
    inner = made.removeprefix(opening).removesuffix(closing)
    if len(inner) != len(made) - len(opening) - len(closing):
        return made
    depth = 0
    for tag in re.findall(r"<mo form=\"(?:prefix|postfix)\">[()]</mo>", inner):
        depth += 1 if "(" in tag else -1
        if depth < 0:
            return made
    return f"<mrow>{inner}</mrow>"
