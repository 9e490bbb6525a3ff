# SPDX-License-Identifier: Apache-2.0
"`python -m cop_repro.cli`: the command line without an installed `cop`."

import sys

from cop_repro.cli import main

if __name__ == "__main__":
    sys.exit(main())
