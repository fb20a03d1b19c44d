"""Shares trained models: `pull` and `push`, via the Hugging Face Hub, a folder or a bucket.

`model_folder.py` reads and writes a model as files, `locations.py` finds and publishes such files,
`card.py` writes the model card, and `transfer.py` converts from and to run directories.
"""
