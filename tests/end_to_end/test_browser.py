"""What a user does in the browser: sees what is planned, fills in the form, cancels a run, tries one again.

Chromium is driven by its DevTools protocol over `websockets`, which Prefect brings along.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from flows.plan import downstream
from flows.records import latest_record
from stages.catalog import STAGES

pytestmark = [pytest.mark.end_to_end, pytest.mark.host]

Site = Any  # as conftest.py makes it
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHIN_SECONDS = 120
#: The innermost element that shows a text, the last of several: a dialog stands at the end of the document.
#: It is scrolled to, because only what is in sight can be clicked.
FIND = """
((text, name) => {
  const all = [...document.querySelectorAll(name)];
  const shown = all.filter(e => e.innerText?.trim() === text && e.offsetParent);
  const found = shown.filter(e => !shown.some(other => other !== e && e.contains(other))).at(-1);
  return found && (found.scrollIntoView({block: "center"}), found.getBoundingClientRect().toJSON());
})(%s, %s)
"""


def wait_for(condition: Callable[[], object], what: str, seconds: float = WITHIN_SECONDS) -> None:
    """Until something has come; says what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class Page:
    """One page of a browser."""

    def __init__(self, address: str) -> None:
        self.patience_seconds = float(WITHIN_SECONDS)
        self._socket = connect(address, max_size=None)
        self._numbers = itertools.count()

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (said := json.loads(self._socket.recv(timeout=60))).get("id") != number:
            pass  # an event that nobody asked for
        return said.get("result", {})  # nothing while a page gives way to the next

    def evaluate(self, script: str) -> Any:
        """The value of an expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return done.get("result", {}).get("value")

    def open(self, url: str) -> None:
        """Go somewhere."""
        self.call("Page.navigate", url=url)

    def keep_trying(self, task: Callable[[], object]) -> None:
        """Do it anew, twice at most, when it comes to no end: a page that is drawn anew swallows a press."""
        self.patience_seconds /= 3
        for further in (2, 1, 0):
            try:
                task()
                break
            except AssertionError:
                if not further:
                    raise
        self.patience_seconds *= 3

    def close(self) -> None:
        """Show nothing: what moves on a page costs a processor of its own."""
        self.open("about:blank")

    def sees(self, text: str) -> None:
        """Wait for a text."""
        self._wait_for(lambda: text in (self.evaluate("document.body?.innerText") or ""), text)

    def _wait_for(self, condition: Callable[[], object], what: str) -> None:
        wait_for(condition, what, self.patience_seconds)

    def click(self, text: str, name: str = "*") -> None:
        """Press what shows exactly this text, once it is there and keeps still."""
        self._press_found(FIND % (json.dumps(text), json.dumps(name)), text)

    def _press_found(self, script: str, what: str) -> None:
        still: list[Any] = []

        def keeps_still() -> bool:
            still[:] = [self.evaluate(script)]
            return bool(still[0]) and still[0] == self._later(script)

        self._wait_for(keeps_still, what)
        self.press(still[0])

    def write(self, selector: str, number: int, text: str) -> None:
        """Type into one of the fields that a selector names, once it is there."""
        field = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self._wait_for(
            lambda: self.evaluate(f"{field}?.focus(), document.activeElement === {field}"), selector
        )
        self.call("Input.insertText", text=text)

    def click_on(self, selector: str) -> None:
        """Press the first that a selector names."""
        script = f"document.querySelector({json.dumps(selector)})?.getBoundingClientRect().toJSON()"
        self._press_found(script, selector)

    def _later(self, script: str) -> Any:
        time.sleep(0.3)
        return self.evaluate(script)

    def press(self, place: dict[str, float]) -> None:
        """Mouse down and up in the middle of a place."""
        where = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **where)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """An empty page of a headless browser, which keeps its files in `folder`."""
    command = [str(CHROMIUM), "--headless=new", "--disable-gpu", "--no-first-run", "--window-size=1400,1250"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}/profile"]
    # As with a mouse: for a finger the UI shows other lists.
    command += [
        "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
    ]
    command += ["--no-sandbox"] * (os.geteuid() == 0)  # root has none
    process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        told = folder / "profile" / "DevToolsActivePort"
        wait_for(told.exists, "the browser")
        with urllib.request.urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json/list") as reply:
            [address] = [one["webSocketDebuggerUrl"] for one in json.load(reply) if one["type"] == "page"]
        yield Page(address)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """An empty page, where a browser is installed."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with chromium(tmp_path) as found:
        yield found


def address(site: Site, place: str) -> str:
    """A page of the UI."""
    return f"{site.api.api_url.removesuffix('/api')}/{place}"


def newest_run(site: Site, deployment: str) -> str | None:
    """The id of the last run of a deployment, if it had one."""
    of_it = {"id": {"any_": [site.deployment(deployment)["id"]]}}
    found = site.api.post("/flow_runs/filter", deployments=of_it, sort="EXPECTED_START_TIME_DESC", limit=1)
    return found[0]["id"] if found else None


def test_the_nightly_run_is_seen_to_be_planned(site: Site, page: Page) -> None:
    page.open(
        address(site, f"deployments/deployment/{site.deployment('build-llm/nightly')['id']}?tab=Upcoming")
    )
    page.sees("auto-scheduled")
    page.sees("02:30:00 AM")


def rerun_sft(site: Site, page: Page, *overrides: str, with_downstream: bool) -> dict[str, str]:
    """Fill in the form for SFT and wait for the run; returns stage -> outcome."""
    name, before = "rerun-stage/on-demand", newest_run(site, "rerun-stage/on-demand")

    def submit() -> None:
        if newest_run(site, name) == before:
            fill_in(site, page, name, overrides, with_downstream)
        wait_for(lambda: newest_run(site, name) != before, "a run", page.patience_seconds)

    page.keep_trying(submit)
    page.close()
    run = newest_run(site, name)
    site.assert_ended(run, "COMPLETED")
    record = latest_record(site.store)
    assert record.run_id == site.api.get(f"/flow_runs/{run}")["name"]
    return {stage.name: stage.outcome for stage in record.stages}


def fill_in(site: Site, page: Page, name: str, overrides: Sequence[str], with_downstream: bool) -> None:
    """The form of a deployment, for SFT, from opening it to Submit."""
    page.open("about:blank")
    page.open(address(site, f"deployments/deployment/{site.deployment(name)['id']}"))
    page.click("Run", "button")
    page.click("Custom run")
    page.sees("Also run all that follows")
    page.click_on(".p-tag__dismiss")
    page.click_on(".p-select-button__icon")
    page.click("sft")
    page.click("Parameters")  # closes the list
    if with_downstream:
        page.click_on(".p-toggle__control")
    for number, override in enumerate(overrides):
        page.click_on(".p-draggable-list__create-button")
        page.write(".schema-form-property-array-list textarea", number, override)
    page.click("Submit", "button")


def test_the_form_reruns_sft_alone_and_then_with_all_that_follows(site: Site, page: Page) -> None:
    alone = rerun_sft(site, page, "sft.max_steps=1", "sft.sample_tokens=4", with_downstream=False)
    assert {name for name, outcome in alone.items() if outcome == "ran"} == {"sft"}
    assert set(alone.values()) == {"ran", "hit"}
    quick = ("dpo.evaluations=1", "dpo.sample_tokens=4", "quantize.sample_tokens=4")
    followed = rerun_sft(site, page, *quick, with_downstream=True)
    follows = {"sft"} | downstream("sft", STAGES)
    assert follows > {"dpo", "quantize"}
    assert {name for name, outcome in followed.items() if outcome == "ran"} == follows
    assert {name for name, outcome in followed.items() if outcome == "hit"} == followed.keys() - follows


def test_cancel_and_retry_are_buttons_of_a_run(site: Site, page: Page) -> None:
    """Cancelled in its second stage, a run begins there when it is tried again."""
    run = site.start_long("tokenizer", "sft")
    page.open(address(site, f"runs/flow-run/{run}"))
    page.click("Cancel", "button")
    page.click("Confirm", "button")
    site.until(lambda: site.stage_pid("sft") is None, site.CANCELLED_WITHIN_SECONDS)
    site.assert_ended(run, "CANCELLED")
    assert site.checkpoints("sft")
    page.click("Retry", "button")
    page.sees("This will retry flow run")
    page.click("Retry", "button")
    site.until(lambda: site.stage_pid("sft"))
    page.close()
    assert site.api.get(f"/flow_runs/{run}")["run_count"] == 2
    site.until(lambda: site.task_states(run)["tokenizer"] == "Cached")
    site.cancel(run)
    site.assert_ended(run, "CANCELLED")
