"""Makes vLLM's second model runner start on a CPU, its Triton kernels interpreted.

Python imports this where the folder is on PYTHONPATH; without the variable it does nothing.
"""

import os

if os.environ.get("TESTS_INTERPRET_TRITON"):
    # Before triton is imported, which reads it once.
    os.environ["TRITON_INTERPRET"] = "1"

    import triton.backends

    class Driver:
        """An active driver, which is all that vLLM asks for."""

        @staticmethod
        def is_active() -> bool:
            return True

    class Backend:
        """What triton lists per device; interpreted kernels need no compiler."""

        driver = Driver
        compiler = None

    triton.backends.backends["cpu"] = Backend
