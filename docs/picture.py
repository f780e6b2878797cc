"""Write docs/service.png, the picture of the service's page: `python docs/picture.py`, with Chromium and a minute.

The model is the demo's (`examples/demo_model.py`), the browser that of the tests.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests"), str(ROOT / "tests" / "service")]

from browser import browser  # noqa: E402 - they are in no package
from PIL import Image  # noqa: E402

from demo_model import settings_of  # noqa: E402
from running import running  # noqa: E402
from winnow import Reranker  # noqa: E402

MODEL = "winnow-demo-reranker"
PICTURE = ROOT / "docs" / "service.png"


def main() -> None:
    """Rank the example of the page, and take the picture."""
    reranker = Reranker(**settings_of(MODEL), engine="transformers")
    with running(reranker, served_names=[MODEL]) as server, browser() as page, page.size(1180, 760):
        page.open(server.url)
        page.until("#model option")
        page.until_text("#state", "ready")
        page.click("#example")
        page.until(".result")
        page.run("window.scrollTo(0, 0); document.activeElement.blur()")
        page.driver.save_screenshot(str(PICTURE))
    with Image.open(PICTURE) as image:  # few colours are enough, and a quarter of the size
        image.convert("RGB").quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
