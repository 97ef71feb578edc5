"""Where the tests of the Triton kernels run: on a GPU with TRITON_INTERPRET=0, else in the interpreter."""

from selective_kernels import _triton

INTERPRETED = _triton.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
