"""A small family of models whose losses a scaling law is fitted to, and whose largest it must predict.

`python -m lab.scaling OUT` trains it; `python -m lab.scaling.predict OUT/runs.csv RECORD.json` fits and compares.
"""
