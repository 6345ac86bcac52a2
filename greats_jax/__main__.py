"""`python -m greats_jax` is `greats`."""

import sys

from greats_jax.cli import main

sys.exit(main())
