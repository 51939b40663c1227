"""`python -m service.cli` is `visiontower`."""

import sys

from service.cli.main import main

sys.exit(main())
