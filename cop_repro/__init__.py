__version__ = "0.1.0"

from cop_repro._caches import choose_caches
from cop_repro._threads import choose_waiting

choose_caches()
choose_waiting()
