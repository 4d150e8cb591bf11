"""Speed, measured as ratios within one run: a file for each question; `python -m benchmarks --help`.

`timing` interleaves the contenders, `environment` says on what, `report` makes tables, JSON and the marked section of
docs/benchmarks.md, `figure` the figure. No other file measures time or writes files.
"""
