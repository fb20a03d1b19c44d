"""Images in, batches out: data sets, their formats and the input pipeline."""
