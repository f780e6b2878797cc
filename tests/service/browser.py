"""A real Chromium without a screen, for tests of the page and for its picture in the docs."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 120  # seconds, for what takes none where nothing else runs
MISSING = "THE PAGE IS NOT TESTED: Chromium is not installed. As root: apt-get install chromium chromium-driver"


def is_installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """A browser with one tab."""

    def __init__(self, driver: Chrome):
        self.driver = driver
        self.prefer(dark=False)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def __call__(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, selector: str) -> WebElement:
        """Wait until there is such an element."""
        found = WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: self.all(selector))
        return found[0]

    def until_text(self, selector: str, text: str) -> WebElement:
        """Wait until an element has a text."""
        WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: text in self(selector).text)
        return self(selector)

    def write(self, selector: str, text: str) -> None:
        field = self(selector)
        field.clear()
        field.send_keys(text)

    def click(self, selector: str) -> None:
        """Click on an element, in the middle of the window, where nothing lies over it."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self(selector))
        self(selector).click()

    def press(self, keys: str) -> None:
        """Press a key where the focus is, such as "Tab" or "Control+Enter"."""
        *held, key = (getattr(Keys, name.upper()) for name in keys.split("+"))
        actions = ActionChains(self.driver)
        for one in held:
            actions.key_down(one)
        actions.send_keys(key)
        for one in held:
            actions.key_up(one)
        actions.perform()

    def focused(self) -> str:
        """The id of what has the focus."""
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the browser has logged since the last call: errors, and what the page's policy forbids."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def prefer(self, *, dark: bool) -> None:
        """Tell the page what its reader prefers: light or dark, and no motion."""
        likes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in likes.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextlib.contextmanager
    def size(self, width: int, height: int) -> Iterator[None]:
        """The page has this size meanwhile."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser, which ends with the context."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    # Root has no sandbox, containers have a small /dev/shm.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
