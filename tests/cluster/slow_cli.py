"""`alia-ctx`, whose updates take SLOW_SECONDS longer: long enough to be disturbed.

python -m tests.cluster.slow_cli train CONFIG --stage NAME
"""

from __future__ import annotations

import os
import time

from alia_ctx.cli import main
from tests.disturbances import _before_updates

if __name__ == "__main__":
    _before_updates(lambda update: time.sleep(float(os.environ["SLOW_SECONDS"])))
    main()
