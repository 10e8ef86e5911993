"""Data sets, samplers and the loader that turns a config into batches."""
