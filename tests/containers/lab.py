"""JupyterLab in headless Chromium, used as a person would: log in, open, run, look, save."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from playwright.sync_api import Page, expect, sync_playwright

from tests.contract.repository import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without these Chromium asks its maker's servers for updates and experiments at every start.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
PICTURES = ROOT / "runs" / "screenshots"
NOTEBOOK = "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"


def browser() -> str | None:
    """Return the command of a Chromium that is installed here, if any."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def answer(url: str, **headers: str) -> int:
    """Return the status of a request, 0 where nothing listens."""
    try:
        with urlopen(Request(url, headers=headers), timeout=10) as response:
            status: int = response.status
            return status
    except HTTPError as error:
        return error.code
    except URLError:
        return 0


class Lab:
    """One page with JupyterLab; pictures of it go to a folder."""

    def __init__(self, page: Page, url: str, pictures: Path) -> None:
        self.page, self.url, self.pictures = page, url, pictures
        pictures.mkdir(parents=True, exist_ok=True)

    def check_others_are_refused(self) -> None:
        """Assert that a page of another origin and a path outside the tree get nothing."""
        get = self.page.request.get
        for path in ("/api/contents", "/api/kernels"):
            assert get(f"{self.url}{path}").status == 200
            foreign = get(f"{self.url}{path}", headers={"Origin": "http://elsewhere.example"})
            assert foreign.status in (403, 404), (path, foreign.status)
        outside = ("..%2F..%2Fetc%2Fpasswd", "%2E%2E/%2E%2E/etc/passwd", "%2Fetc%2Fpasswd")
        for path in (f"{start}/{end}" for start in ("/api/contents", "/files") for end in outside):
            answer = get(f"{self.url}{path}")
            assert answer.status in (400, 403, 404) and "root:" not in answer.text(), path

    def picture(self, name: str) -> None:
        """Keep what the page shows now."""
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def log_in(self, token: str) -> None:
        """Enter the token at the page that JupyterLab shows to a stranger."""
        self.page.goto(f"{self.url}/lab")
        field = self.page.locator("#password_input")
        expect(field).to_be_visible()
        self.picture("log-in")
        field.fill(token)
        self.page.locator("#login_submit").click()
        expect(self.page.locator(".jp-DirListing-content")).to_be_visible(timeout=60_000)
        self.page.get_by_role("button", name="No", exact=True).click()  # no news, once

    def open(self, path: str) -> None:
        """Open a notebook from the file browser and wait for its kernel."""
        for part in Path(path).parts:
            entry = self.page.locator(".jp-DirListing-item").filter(has_text=part)
            expect(entry).to_be_visible(timeout=30_000)
            entry.dblclick()
        expect(self.page.locator(".jp-Notebook")).to_be_visible(timeout=60_000)
        self.wait_until(lambda: self.kernel_state() == "idle", 120, "its kernel started")

    def run_all(self, last: int, seconds: float) -> None:
        """Run all cells through the menu and wait until the cell `last` is done.

        The kernel's state does not tell: to the server it may be `idle` in a training's middle.
        """
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator("li[data-command='runmenu:run-all']").click()
        self.wait_until(lambda: self.prompt(last) == "[*]:", 30, "the last cell was in the queue")
        ended = re.compile(r"\[(\d+| )\]:")  # a number, or nothing after an error above
        self.wait_until(
            lambda: ended.fullmatch(self.prompt(last)) is not None, seconds, "the last cell ended"
        )

    def prompt(self, index: int) -> str:
        """Return what stands before a cell: `[*]:` while it waits or runs; empty if not drawn."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        panel.evaluate("panel => panel.scrollTo(0, panel.scrollHeight)")
        cell = self.page.locator(f".jp-Cell[data-windowed-list-index='{index}']")
        found = cell.locator(".jp-InputPrompt").all_inner_texts()
        return found[0].replace("\xa0", " ").strip() if found else ""

    def wait_until(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        """Look twice a second; keep a picture and fail when the time is over."""
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                self.picture("waited-in-vain")
                raise AssertionError(f"{seconds:.0f} s were over before {what}")
            self.page.wait_for_timeout(500)

    def kernel_state(self) -> str | None:
        """Return what the server says of the one kernel; None where there is none yet."""
        kernels = self.page.request.get(f"{self.url}/api/kernels").json()
        assert len(kernels) < 2, kernels
        return kernels[0]["execution_state"] if kernels else None

    def show(self, selector: str) -> None:
        """Scroll the notebook until an element is in sight: cells out of sight are not drawn."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        found = self.page.locator(selector).first
        for _ in range(200):
            if found.is_visible():
                found.scroll_into_view_if_needed()
                self.page.wait_for_timeout(500)
                return
            panel.evaluate("panel => panel.scrollBy(0, panel.clientHeight / 2)")
            self.page.wait_for_timeout(100)
        raise AssertionError(f"nothing in the notebook matches {selector}")

    def save(self, file: Path) -> dict[str, Any]:
        """Save the notebook and return what is on the disk of the host."""
        before = file.stat().st_mtime_ns
        self.page.get_by_role("menuitem", name="File", exact=True).click()
        self.page.locator("li[data-command='docmanager:save']").click()
        end = time.monotonic() + 30
        while file.stat().st_mtime_ns == before:
            assert time.monotonic() < end, "the notebook was not saved"
            self.page.wait_for_timeout(200)
        self.page.wait_for_timeout(500)
        saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return saved


@contextmanager
def opened(url: str, pictures: Path) -> Iterator[Lab]:
    """A page of JupyterLab in a browser of its own, without anything remembered."""
    command = browser()
    assert command, "look for a browser first"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root otherwise
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=command, args=[*QUIET, *sandbox])
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        try:
            yield Lab(page, url, pictures)
        finally:
            chromium.close()


def train_in_the_browser(url: str, token: str, tree: Path, pictures: Path) -> None:
    """Log in, run a recipe, look at its progress and its plot, save; assert what the file holds."""
    file = tree / NOTEBOOK
    kinds = [cell["cell_type"] for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
    last = max(index for index, kind in enumerate(kinds) if kind == "code")
    with opened(url, pictures) as lab:
        lab.log_in(token)
        lab.check_others_are_refused()
        lab.open(NOTEBOOK)
        lab.run_all(last, seconds=600)
        lab.show(".jp-OutputArea-output progress")
        lab.picture("training")
        lab.show(".jp-OutputArea-output img")
        lab.picture("plot")
        saved = lab.save(file)
    code = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [one["evalue"] for one in outputs if one["output_type"] == "error"] == []
    assert all(cell["execution_count"] for cell in code if "".join(cell["source"]).strip())
    shown = {kind for one in outputs for kind in one.get("data", {})}
    assert "image/png" in shown, "no plot was saved"
