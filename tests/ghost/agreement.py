"""What every network is held to: each contraction is that of gradients laid out by vmap(grad)."""

import jax
import jax.numpy as jnp
import numpy as np
from networks import normal

from greats_jax.ghost import Explanation, reference, value_and_per_example_grads

# Of the largest number compared.
TOLERANCE = 1e-5


def explained_after_checking(loss, *args, forward_mode=True, instantiate_below=0.0) -> Explanation:
    """Compare gram, cross, squared_norms, dot and weighted_sum with materialised gradients, then explain.

    Args:
        loss: of `args`, the last of which is the batch.
        args: parameters, anything frozen, batch.
        forward_mode: whether `loss` has a forward derivative; then `dot` must be that too.
        instantiate_below: as for the transform; at 0 every leaf that can be factored is.
    """
    params, n = args[0], jax.tree.leaves(args[-1])[0].shape[0]
    direction = jax.tree.map(lambda x: normal(x.size, *x.shape).astype(jnp.float32), params)
    weights, rest = jnp.linspace(-0.5, 2.0, n), slice(n // 2, None)

    @jax.jit
    def contracted(*args):
        losses, grads = value_and_per_example_grads(loss, instantiate_below=instantiate_below)(*args)
        tables = grads.gram(), grads.cross(grads[rest]), grads.squared_norms()
        return (losses, *tables, grads.dot(direction), grads.weighted_sum(weights)), grads

    @jax.jit
    def laid_out(*args):
        losses = jax.vmap(loss, (None,) * (len(args) - 1) + (0,))(*args)
        slow = reference.per_example_grads(loss, *args)
        gram = reference.gram(slow)
        pairs = zip(jax.tree.leaves(slow), jax.tree.leaves(direction), strict=True)
        dot = sum(jnp.einsum("n...,...->n", g, v) for g, v in pairs)
        total = jax.tree.map(lambda g: jnp.einsum("n,n...->...", weights, g.astype(jnp.float32)).astype(g.dtype), slow)
        by_jvp = reference.dot_by_jvp(loss, direction, *args) if forward_mode else dot
        return (losses, gram, gram[:, rest], jnp.diagonal(gram), dot, total), by_jvp

    found, grads = contracted(*args)
    expected, by_jvp = laid_out(*args)
    names = ("losses", "gram", "cross", "squared_norms", "dot", "weighted_sum")
    for name, ours, theirs in zip(names, found, expected, strict=True):
        close(ours, theirs, name)
    close(found[names.index("dot")], by_jvp, "dot by forward mode")
    return grads.explain()


def close(found, expected, name=""):
    """Equal up to a share of the leaf's largest entry (or a thousandth of the tree's: what cancels is not compared)."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    sizes = [float(np.abs(np.asarray(b, np.float64)).max(initial=0)) for _, b in leaves]
    assert max(sizes) > 0, f"{name}: nothing to compare"
    for a, (path, b), size in zip(jax.tree.leaves(found), leaves, sizes, strict=True):
        limit = TOLERANCE * max(size, 1e-3 * max(sizes))
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=limit,
            err_msg=name + jax.tree_util.keystr(path),
        )  # fmt: skip


def materialised(explanation: Explanation) -> dict[str, str]:
    """The leaves that were not recognised, with the operation at which the search ended."""
    ended = {row.path: row.kind.partition("ended at ")[2].rstrip(")") for row in explanation}
    named = {path: operation for path, operation in ended.items() if operation}
    assert all(operation in str(explanation) for operation in named.values())
    return named


def factored(explanation: Explanation) -> set[str]:
    """The leaves kept as operands of outer products."""
    return {row.path for row in explanation if row.kind == "factored"}


def matrices(explanation: Explanation) -> set[str]:
    """The leaves with more than one axis longer than 1."""
    return {row.path for row in explanation if sum(size > 1 for size in row.shape) > 1}
