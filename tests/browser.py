"""A headless Chromium on a real TensorBoard."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-first-run", "lang=en-US")
# TensorBoard's own: it brings Three.js twice, and asks for a WebGL that is not there.
NOT_OURS = ("Multiple instances of Three.js", "software WebGL")


@contextmanager
def dashboard(logdir, *arguments):
    """``stepguard dashboard`` on a free port; its address."""
    command = [
        sys.executable,
        "-m",
        "stepguard.cli",
        "dashboard",
        str(logdir),
        "--port",
        "0",
        "--no-browser",
        *arguments,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield next(line.split()[-1] for line in process.stdout if line.startswith("StepGuard at"))
        finally:
            process.kill()


@contextmanager
def browser(dark=False):
    """A Chromium to steer; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium steers the browser: pip install selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, "window-size=1400,1500"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        scheme(driver, "dark" if dark else "light")
        yield driver
    finally:
        driver.quit()


def scheme(driver, value):
    """The system's choice of light or dark."""
    features = [{"name": "prefers-color-scheme", "value": value}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def visit(driver, url):
    """Opens the tab, and waits until it has been answered."""
    driver.switch_to.default_content()
    driver.get("about:blank")
    driver.get(url)
    frame = wait(lambda: driver.find_elements("css selector", "iframe"))[0]
    driver.switch_to.frame(frame)
    wait(lambda: driver.execute_script("return window.stepguard?.timer !== undefined"))


def wait(found, seconds=20):
    """What is found, once it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.05)
    pytest.fail(f"not there after {seconds} seconds")


def complaints(driver):
    """What the console has against the page."""
    lines = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    return [line for line in lines if not any(words in line for words in NOT_OURS)]


def asked(driver):
    """Every address that was asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
