"""`python -m fusionseg <command>`: the same as `fusionseg <command>`."""

import sys

from fusionseg.cli import main

sys.exit(main())
