"""Keeps other packages' start-up chatter out of our output; their errors still come through."""

import logging
import os


def silence_libraries() -> None:
    """Turn down third-party logging; must run before those packages are imported, and respects what the user set."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's C++ log
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "None of PyTorch, TensorFlow, or Flax have been found"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning when data workers fork
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells a damaged file twice; we tell it once
    # "No GPU/TPU found, falling back to CPU": a choice most users made on purpose.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
