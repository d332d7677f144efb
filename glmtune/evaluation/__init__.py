"""How good a model is: metrics, a run over examples, a report with its breakdown, tables and plots.

An answer counts as right when its exact value is right, and every share comes with its 95% interval. rouge and BLEU-4
are reported as the official ChatGLM evaluation computes them, for comparison with published figures. Import from the
submodules: this package loads nothing by itself.
"""
