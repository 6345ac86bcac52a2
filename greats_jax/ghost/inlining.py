"""Flatten a jaxpr: calls are replaced by their bodies, so that only `scan` still holds a sub-program.

The engine looks for the equation in which a weight's gradient is born. JAX hides it in nested calls: `jnp.take`
puts its scatter-add in a `jit` equation, `jax.checkpoint` puts a whole backward pass in a `remat2` equation. After this
pass a gradient is reached by walking plain equations and, for layers that run under `lax.scan`, scan bodies.

Everything that depends on how JAX spells its call primitives is in this module.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np
from jax import lax

Array = jax.Array

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}
_REMAT = {"remat", "remat2", "remat3", "checkpoint"}


class ScanParts(NamedTuple):
    """The parts of a scan equation, independent of how the JAX release spells its parameters."""

    body: jex.ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: Any

    def split(self, atoms: Sequence[Any]) -> tuple[list, list, list]:
        """Split the inputs of the equation (or of its body) into constants, carry and per-iteration inputs."""
        a, b = self.num_consts, self.num_consts + self.num_carry
        return list(atoms[:a]), list(atoms[a:b]), list(atoms[b:])


def is_scan(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation is a `lax.scan`."""
    return eqn.primitive.name == "scan"


def scan_parts(eqn: jex.JaxprEqn) -> ScanParts:
    """Read the parameters of a scan equation."""
    p = eqn.params
    body = as_closed(p["jaxpr"])
    if "num_carry" in p:
        num_consts, num_carry = p["num_consts"], p["num_carry"]
    else:  # jax >= 0.12 describes the inputs by a tree of (constants, carry, inputs)
        num_consts, num_carry = (len(part) for part in p["ft_in"].unpack()[:2])
    return ScanParts(body, num_consts, num_carry, p["length"], p["reverse"], p["unroll"])


def as_closed(jaxpr: Any) -> jex.ClosedJaxpr:
    """A closed jaxpr, whether the primitive kept it open or closed."""
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


def inline_calls(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """Return an equivalent jaxpr without jit, remat and custom-derivative calls, at every depth of nested scans.

    A rematerialised backward keeps its meaning: where JAX asks that the recomputation is not merged with the first
    computation (`prevent_cse`), its inputs pass an `optimization_barrier`, as in JAX's own lowering.
    """
    avals = [v.aval for v in closed.jaxpr.invars]
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False)) for a in avals]
    return jax.make_jaxpr(lambda *args: _evaluate_inlined(closed, args))(*structs)


def _evaluate_inlined(closed: jex.ClosedJaxpr, args: Sequence[Array]) -> list[Array]:
    return evaluate(closed.jaxpr, closed.consts, args, _inline_equation)


def _inline_equation(eqn: jex.JaxprEqn, values: list[Array]) -> list[Array]:
    name = eqn.primitive.name
    if name in _CALLS:
        return _evaluate_inlined(as_closed(eqn.params[_CALLS[name]]), values)
    if name == "custom_vjp_call":
        params = eqn.params
        return _evaluate_inlined(as_closed(params["call_jaxpr" if "call_jaxpr" in params else "fun_jaxpr"]), values)
    if name in _REMAT:
        if eqn.params.get("prevent_cse"):
            values = list(lax.optimization_barrier(tuple(values)))
        return _evaluate_inlined(as_closed(eqn.params["jaxpr"]), values)
    if is_scan(eqn) and _has_calls(scan_parts(eqn).body.jaxpr):
        return _inline_scan(scan_parts(eqn), values)
    return bind(eqn, values)


def _inline_scan(parts: ScanParts, values: list[Array]) -> list[Array]:
    consts, carry, xs = parts.split(values)

    def body(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        outs = _evaluate_inlined(parts.body, [*consts, *carry, *x])
        return outs[: parts.num_carry], outs[parts.num_carry :]

    final, ys = lax.scan(body, carry, xs, length=parts.length, reverse=parts.reverse, unroll=parts.unroll)
    return [*final, *ys]


def _has_calls(jaxpr: jex.Jaxpr) -> bool:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _CALLS or name in _REMAT or name == "custom_vjp_call":
            return True
        if is_scan(eqn) and _has_calls(scan_parts(eqn).body.jaxpr):
            return True
    return False


def evaluate(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Array],
    args: Sequence[Array],
    rule: Callable[[jex.JaxprEqn, list[Array]], list[Array]],
) -> list[Array]:
    """Interpret a jaxpr, handing each equation and its input values to `rule`."""
    env: dict[jex.Var, Array] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        outs = rule(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def read(env: dict[jex.Var, Array], atom: Any) -> Any:
    """The value of a variable or literal."""
    return atom.val if isinstance(atom, jex.Literal) else env[atom]


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable or literal; JAX's annotations promise no shape, though every array has one."""
    return atom.aval.shape


def dtype_of(atom: Any) -> np.dtype:
    """The dtype of a variable or literal."""
    return atom.aval.dtype


def bind(eqn: jex.JaxprEqn, values: Sequence[Any]) -> list[Array]:
    """Evaluate one equation as JAX's own jaxpr evaluator does."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]
