"""One HTML page about a run, in a single file that can be mailed: `report_run` in `write.py`.

`measure.py` computes the contents, `sections.py` turns them into text, tables and pictures, and
`page.py` makes HTML of these.
"""
