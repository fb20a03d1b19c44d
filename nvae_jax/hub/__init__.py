"""Trained models to start from: `pull` and `push`, over the Hugging Face Hub, a folder or a bucket.

`model_folder.py` says what a model is as files, `locations.py` where such files are, `card.py` what
people read of one, and `transfer.py` turns them into a run directory and back.
"""
