"""One HTML page about a run, in a file that can be mailed: `report_run` in `write.py`.

`measure.py` finds what is to be said, `sections.py` says it, `page.py` has HTML's own parts.
"""
