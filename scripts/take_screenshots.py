"""The README's pictures:  take_screenshots.py http://127.0.0.1:8080 7:425   (a viewer over demo.db; a
neuron)
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

address, neuron = sys.argv[1], sys.argv[2].replace(":", "/")
out = Path(__file__).resolve().parent.parent / "docs" / "screenshots"
DESK, PHONE = {"width": 1200, "height": 860}, {"width": 390, "height": 844}
SHOTS = {
    "start": ("/", {"viewport": DESK}, ""),
    "neuron": (f"/{neuron}", {"viewport": DESK}, ""),
    "simulated-dark": (f"/{neuron}", {"viewport": DESK, "color_scheme": "dark"}, "s"),
    "phone": (f"/{neuron}", {"viewport": PHONE}, ""),
}
with sync_playwright() as playwright:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
    for name, (path, options, key) in SHOTS.items():
        page = browser.new_context(**options).new_page()
        page.goto(address + path)
        if key:
            page.keyboard.press(key)
            page.wait_for_selector(".record .crop")
        page.screenshot(path=out / f"{name}.png")
    browser.close()
