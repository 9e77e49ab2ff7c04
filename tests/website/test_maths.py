"""Formulas of docstrings: what is one, where it ends, and what it looks like."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from website.maths import html, pieces


def shape(mathml: str) -> str:
    """A formula's MathML without what is the same for all: <mfrac>a b</mfrac> as frac(a b)."""

    def told(node: ElementTree.Element) -> str:
        inner = [told(child) for child in node]
        name = node.tag.removeprefix("m")
        if name in ("ath", "style") or (name == "row" and len(inner) == 1):
            return inner[0]
        text = node.text or name * (name == "space")
        return f"{name}({' '.join(inner)})" if inner else text

    return told(ElementTree.fromstring(mathml))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a = b c + d", "row(a = row(row(b c) + d))"),
        ("theta <- theta - lr * g", "row(θ ← row(θ − row(lr ⋅ g)))"),
        ("w_i = 1/k", "row(sub(w i) = frac(1 k))"),
        # A wide line divides all that stands beside it, a narrow one its neighbours.
        ("a = b c / d e", "row(a = frac(row(b c) row(d e)))"),
        ("a = b/c d", "row(a = row(frac(b c) d))"),
        ("a = (b - c) / d", "row(a = frac(row(b − c) d))"),
        ("c = sum_j w_j x_j^2", "row(c = row(row(under(∑ j) sub(w j)) subsup(x j 2)))"),
        ("u = max_{k != y} z_k", "row(u = row(under(max row(k ≠ y)) sub(z k)))"),
        ("p = softmax(outputs)", "row(p = row(softmax row(( outputs ))))"),
        ("x_(t+1) = |x_t|", "row(sub(x row(t + 1)) = row(| sub(x t) |))"),
        ("j in A_i", "row(j ∈ sub(A i))"),
        ("g_s = grad_x f(x')", "row(sub(g s) = row(sub(∇ x) row(f row(( sup(x ′) )))))"),
        ("e = sqrt(1 - lambda) ghat", "row(e = row(sqrt(row(1 − λ)) over(g ^)))"),
        ("k = 0 .. K-1", "row(k = 0 … row(K − 1))"),
        ("D = KL(f || g)", "row(D = row(KL row(( f ∥ g ))))"),
        ("m = beta1 m + v2^t", "row(m = row(row(sub(β 1) m) + sup(sub(v 2) t)))"),
        ("a = (1/q) b", "row(a = row(frac(1 q) b))"),
        ("a = (1/q)^2", "row(a = sup(row(( frac(1 q) )) 2))"),
        ("a = b log n", "row(a = row(b space log space n))"),
        ("c_i+ = c_i - c", "row(subsup(c i +) = row(sub(c i) − c))"),
    ],
)
def test_a_formula_looks_as_it_reads(text: str, wanted: str) -> None:
    [piece] = pieces(text)
    assert shape(piece.mathml) == wanted


@pytest.mark.parametrize(
    ("line", "formulas"),
    [
        ("w = 1, the weights;  d = 2", ["w = 1", "d = 2"]),
        ("where u_i is the staleness of a client", ["u_i"]),
        ("theta a client", ["theta"]),
        ("a = b  c is another matter", ["a = b"]),
        ("that what it takes is d floats a client, and own_loss", []),
        ("x <- x + size e_j, with size an option", ["x <- x + size e_j"]),
        ("x = y is what a sum of parts is", ["x = y"]),
        ('form = "code":  m <- m + g', ["m <- m + g"]),
        ("`a = b` is code, and (this too) is text", []),
        ("a = ", []),
        ("a = (b", []),
    ],
)
def test_what_is_no_formula_stays_text(line: str, formulas: list[str]) -> None:
    found = pieces(line, ["size"])
    assert [piece.text for piece in found if piece.mathml] == formulas
    assert "".join(piece.text for piece in found) == line


def test_text_beside_formulas_is_escaped_and_code_is_code() -> None:
    assert html("`a < b` & <c>") == "<code>a &lt; b</code> &amp; &lt;c&gt;"
    assert re.fullmatch(r"<math>.*&lt;.*</math>", html("a < b"))
