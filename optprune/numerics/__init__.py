"""Pure tensor functions: factorisations, proximal maps, selection, sampling and rounding-error bounds.

Nothing here knows a layer, a pattern or a problem. Import the module that you need, for example
`from optprune.numerics.selection import top_k`.
"""
