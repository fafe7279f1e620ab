"""Follows every link that leads out of the documentation: ``make links``, on a machine with a way out."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.docs.documents import documents, name_of
from tests.docs.test_links import links


def fault(url: str) -> str | None:
    """Why a page cannot be read, or None."""
    request = Request(url, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urlopen(request, timeout=20):
            return None
    except HTTPError as error:
        # Some hosts let browsers alone in; the page is there.
        return None if error.code in (401, 403, 405, 429) else f"{error.code} {error.reason}"
    except (URLError, TimeoutError, OSError) as error:
        return str(error)


def main() -> int:
    places: dict[str, str] = {}
    for path in documents():
        for line, target in links(path):
            if target.startswith(("http://", "https://")):
                places.setdefault(target, f"{name_of(path)}:{line}")
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(places, pool.map(fault, places), strict=True))
    faults = [f"{places[url]}: {url}: {why}" for url, why in found.items() if why is not None]
    print(*faults, f"{len(found)} links out of the documentation, {len(faults)} lead nowhere", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
