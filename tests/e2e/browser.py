"""A real browser that is given the time that its machine takes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_LOOK_MS = 30_000
_LOOKS = 20
_NAVIGATION_MS = 300_000


class Browser:
    """A page in a browser of its own, which may be late, but not without a sign of life.

    Args:
        playwright: Starts the browser.
    """

    def __init__(self, playwright: Playwright) -> None:
        self._browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        self.page: Page = self._browser.new_page(viewport={"width": 1500, "height": 1000})
        self.page.set_default_navigation_timeout(_NAVIGATION_MS)
        self._answers = 0
        self.page.on("response", self._count)

    def _count(self, _: object) -> None:
        self._answers += 1

    def shown(self, locator: Locator) -> Locator:
        """Returns a part of the page when it is there, as long as the page gets answers."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        for _ in range(_LOOKS):
            before = self._answers
            try:
                locator.wait_for(timeout=_LOOK_MS)
            except PlaywrightTimeout:
                assert self._answers > before, f"{locator} is not there, and nothing happens"
            else:
                return locator
        raise AssertionError(f"{locator} is not there after {_LOOKS * _LOOK_MS // 1000} s")

    def click(self, locator: Locator) -> None:
        """Clicks on a part of the page when it is there."""
        self.shown(locator).click(timeout=_NAVIGATION_MS)

    def close(self) -> None:
        """Ends the browser."""
        self._browser.close()
