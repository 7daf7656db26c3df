"""One folder per op family: the contract in `__init__`, the plain torch `reference`, then the faster ones.

Every op keeps one promise beside its formula: a row's bits depend on nothing but that row (and, in attention,
on its own keys and values), however many rows come with it and wherever it stands among them.
"""
