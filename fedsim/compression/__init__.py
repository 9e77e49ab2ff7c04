"""Compressors: transforms after which a vector takes fewer bytes, and what makes up for what they leave out.

Each says what its encoding takes to the bit, a byte string padded once at its end. Numbers that both ends know, such as
how many are kept, cost nothing. How far what arrives may be from what was sent, E |C(v) - v|^2 <= error |v|^2, is what
`error` says; unbiased ones, E C(v) = v, call it omega.
"""
