"""`python -m visionstack.healthcheck`: exit 0 if the service in this container is ready. Images need no curl for it."""

import os
import sys
import urllib.request


def main() -> None:
    port = os.environ.get("PORT", "8000")
    # an opener without proxies: the environment's are for the outside
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=3):
            return
    except OSError as exc:
        sys.exit(f"not ready: {exc}")


if __name__ == "__main__":
    main()
