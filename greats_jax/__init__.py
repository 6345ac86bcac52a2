"""Online data selection for language-model training, in JAX.

The parts are imported by name and depend only on those before them: `ghost`, `selection`, `models`, `data`, `tasks`,
`training`, `experiments`. Importing this package alone imports none of them.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
