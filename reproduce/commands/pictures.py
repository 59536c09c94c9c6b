"""The pictures of the documentation: parts of reports, as Chromium shows them.

    take(site.reports, PROJECT / "docs")

The reports must be rendered; selenium, chromium and chromedriver must be installed.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reproduce.messages import InvalidError, NotFoundError

PROGRAMS = ("chromium", "chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)
COLOURS = 64
"""Number of colours of a picture, which keeps its file small."""
SCALE = 2
"""Pixels of a picture for each pixel of a page."""


class Picture(NamedTuple):
    """A part of a page."""

    file: str
    """Path in `docs/`."""
    page: str
    """Path in the reports."""
    part: str
    """CSS selector of the part."""
    width: int
    """Width of the window in pixels."""
    command: str
    """Command that makes the page."""


PICTURES = (Picture("images/table8.png", "smoke/table8.html", ".scroll", 700, "invoke table8"),)
"""Every picture of the documentation."""


def take(reports: Path, docs: Path) -> Iterator[Path]:
    """Write every picture, and yield its path.

    Raises:
        NotFoundError: a program or a page is missing.
        InvalidError: selenium is not installed.
    """
    found = {name: shutil.which(name) for name in PROGRAMS}
    if missing := [name for name, path in found.items() if path is None]:
        raise NotFoundError(f"Pictures need {' and '.join(missing)} (Debian: chromium, chromium-driver).")
    try:
        from selenium import webdriver
    except ImportError:
        raise InvalidError("Pictures need selenium: pip install -r requirements.txt.") from None
    from PIL import Image
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    for picture in PICTURES:
        if not (reports / picture.page).is_file():
            raise NotFoundError(f"{reports / picture.page} is missing: {picture.command} makes it.")
    options = Options()
    options.binary_location = str(found["chromium"])
    for each in (*OPTIONS, f"--force-device-scale-factor={SCALE}"):
        options.add_argument(each)
    driver = webdriver.Chrome(options=options, service=Service(str(found["chromedriver"])))
    try:
        for picture in PICTURES:
            driver.set_window_size(picture.width, 1200)
            driver.get((reports / picture.page).resolve().as_uri())
            shown = driver.find_element(By.CSS_SELECTOR, picture.part).screenshot_as_png
            (docs / picture.file).parent.mkdir(exist_ok=True)
            with Image.open(io.BytesIO(shown), formats=["PNG"]) as pixels:
                pixels.convert("RGB").quantize(COLOURS).save(docs / picture.file, optimize=True)
            yield docs / picture.file
    finally:
        driver.quit()
