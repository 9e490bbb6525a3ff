# SPDX-License-Identifier: Apache-2.0
"""How PyTorch's threads wait for each other.

By default a thread that has finished its part of an operation spins until the others have. Where
another process holds one of the cores, the spinning takes that core's time from the thread that is
waited for: two threads then need twice the processor time of one. A sleeping thread costs nothing.
"""

import os


def choose_waiting() -> None:
    "Let waiting threads sleep, unless the user has decided; it acts if PyTorch is not loaded yet."
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
