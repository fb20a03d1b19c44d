"""A page to look into a trained model: `nvae-jax explore`.

What it may ask for is in `requests.py`; `jobs.py` is the queue, `explorer.py` computes, `server.py`
serves. The page is `page.html`, with `page.css` and `page.js`.
"""
