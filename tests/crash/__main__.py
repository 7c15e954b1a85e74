"""`python -m tests.crash`: see `release`."""

import sys

from tests.crash.release import main

sys.exit(main())
