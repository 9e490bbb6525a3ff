__version__ = "0.1.0"

from cop_repro._caches import choose_caches

choose_caches()
