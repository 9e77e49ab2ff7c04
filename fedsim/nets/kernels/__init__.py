"""Loops that numba compiles: a client's local training from its first to its last step.

Only `fedsim.nets.fused` and `fedsim.nets.dropout` import these files, when there is enough to do for them: numba takes
half a second to come.

`compiling`  how they are compiled, and where the results are kept.
`tiles`      products, in vectors of a fixed length: explicit, so that every number is the same sum in the same order on
             every processor, which a compiler's own vectors of sums are not.
`pieces`     activations with their slopes, and losses with theirs: one function each.
`rules`      what a step makes of a gradient.
`shuffles`   the order of a client's examples.
`masks`      what dropout keeps.
`sliding`    products with patches of images, which lie where they lay.
`pooling`    poolings with their derivatives.
`convolution`  stages of convolutions and poolings before a chain.
`chain`      the loop itself.
`outputs`    the way forward alone, for values at many points.
"""
