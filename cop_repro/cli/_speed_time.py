# SPDX-License-Identifier: Apache-2.0
"How long a call takes."

import time
from collections.abc import Callable


def fastest(call: Callable[[], object], repeats: int = 3) -> float:
    "Seconds of the fastest of some runs, after one that does not count."
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
