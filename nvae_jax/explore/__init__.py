"""A web page to explore a trained model: `nvae-jax explore`.

`requests.py` defines the requests of the page, `jobs.py` queues them, `explorer.py` computes the
answers, `server.py` is the web server. The page is `page.html`, with `page.css` and `page.js`.
"""
