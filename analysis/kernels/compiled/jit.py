"""How the loops are compiled, and an instruction that numba has no name for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_PLAIN: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
compile_: Callable[[Any], Any] = njit(cache=True, **_PLAIN)
"""For functions that Python calls; what they compile to is kept on disk."""
_INSIDE: dict[str, Any] = {**_PLAIN, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner_: Callable[[Any], Any] = njit(**_INSIDE)
"""For functions that only these call: without a way in from Python they take a third less."""
inline_: Callable[[Any], Any] = njit(forceinline=True, **_INSIDE)
intrinsic_: Callable[[Any], Any] = intrinsic


@intrinsic_
def log2_bin(typing_context: Any, value: Any) -> Any:
    """0 for 0, else one more than the floor of log2 of an int64: bits that the number needs."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(ir.IntType(64), 64), zeros)

    return types.int64(types.int64), generate
