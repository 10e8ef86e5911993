"""What all command-line tools share: how errors reach the user and which status the process ends with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from openrec.errors import OpenRecError


def run_tool(main: Callable[[], Any]) -> None:
    """Run ``main`` and end the process.

    Status 0, or 1 with one message on stderr for what the user can mend (``OpenRecError``), or 130
    after Ctrl-C. Anything else is a fault of this project and keeps its traceback.
    """
    status = 0
    try:
        main()
    except OpenRecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)
