"""The dashboard: lineage, comparisons, audits and models on one web page, or in one HTML file.

An index in memory over the tracker, refreshed in the background; no database of its own. What a page shows is plain
data (`graph`, `comparing`, `audits`, `models`); `parts` and `views` give it to Dash, whose callbacks are in `answers`,
and `export` to one self-contained file.
"""
