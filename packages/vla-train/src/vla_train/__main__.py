"""``python -m vla_train``, for ``accelerate launch -m vla_train``."""

import sys

from vla_train.cli import main

sys.exit(main())
