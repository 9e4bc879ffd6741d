"""The report's page in a real browser: no network, no console message, sliders that move the chart and what is said.

    python bench/browser.py [--page FILE.html] [--screenshots FOLDER]

Without --page it makes a ledger of 30 days and its page. The browser is headless Chromium: the one that
`CROSSOVER_CHROMIUM` names, one on PATH, else the one in npm's `@sparticuz/chromium`, installed into .bench-venvs.
Playwright drives it, from the environment of the bench. What isn't there is listed as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NPM = "@sparticuz/chromium@153.0.0"
FLAGS = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--font-render-hinting=none"]


#: What sticks out of a narrow window, boxes that scroll by themselves aside.
WIDE = """[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll") &&
    e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + (e.id || e.className)).slice(0, 9)"""


class NotRun(Exception):
    """No browser here; says why."""


def chromium(folder: Path) -> str:
    """The browser's path; fetched through npm where there is none. Raises `NotRun`."""
    named = os.environ.get("CROSSOVER_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found:
        return found
    unpacked = folder / "chromium"
    if unpacked.exists():
        return str(unpacked)
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        raise NotRun("no Chromium on PATH, and no npm to fetch one with")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "unpack.mjs"
    script.write_text("import c from '@sparticuz/chromium'; console.log(await c.executablePath());\n")
    for command in ([npm, "install", "--no-audit", "--no-fund", "--silent", NPM], [node, str(script)]):
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise NotRun(f"{NPM} could not be installed: {(done.stderr or done.stdout).strip()[-300:]}")
    return str(unpacked)


def checks(page_file: Path, executable: str, screenshots: Path) -> dict[str, Any]:
    """Opens the page light, dark, narrow, without scripts and for print; gives what was seen."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NotRun("playwright is not installed in the environment of the bench") from error
    screenshots.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Any] = {"requests": [], "console": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)

        def opened(**settings: Any) -> Any:
            context = browser.new_context(viewport={"width": 1000, "height": 1400}, **settings)
            page = context.new_page()
            page.on("request", lambda request: seen["requests"].append(request.url))
            page.on("console", lambda message: seen["console"].append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: seen["console"].append(f"error: {error}"))
            page.goto(page_file.resolve().as_uri())
            return page

        light = opened(color_scheme="light")
        light.wait_for_selector("body[data-drawn]", timeout=20_000)
        light.screenshot(path=screenshots / "light.png", full_page=True)
        seen |= moved(light, screenshots)
        page = opened(color_scheme="dark")
        page.wait_for_selector("body[data-drawn]", timeout=20_000)
        page.screenshot(path=screenshots / "dark.png", full_page=True)
        page.emulate_media(media="print", color_scheme="dark")
        seen["printed_paper"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        narrow = opened(color_scheme="light")
        narrow.set_viewport_size({"width": 390, "height": 844})
        narrow.wait_for_selector("body[data-drawn]", timeout=20_000)
        seen["too_wide"] = narrow.evaluate(WIDE)
        seen["narrow_scrolls_sideways"] = narrow.evaluate("document.documentElement.scrollWidth > innerWidth")
        narrow.screenshot(path=screenshots / "narrow.png", full_page=True)
        plain = opened(java_script_enabled=False)
        seen["without_script"] = (
            plain.locator("#chart svg").count() == 1 and plain.locator("#rank tbody tr").count() > 0
        )
        plain.screenshot(path=screenshots / "no-script.png", full_page=True)
        browser.close()
    # The page itself; and what it carries within.
    seen["requests"] = [url for url in seen["requests"] if not url.startswith(("file:", "data:", "blob:"))]
    return seen


def moved(page: Any, screenshots: Path) -> dict[str, Any]:
    """Each slider to its far end: what changed?"""
    found: dict[str, Any] = {"sliders": [], "named": True}

    def state() -> dict[str, str]:
        return {
            "chart": page.locator("#chart").inner_html(),
            "crossover": page.locator("#crossover").inner_text(),
            "rank": page.locator("#rank").inner_text(),
            "told": page.locator(".controls").inner_text(),
        }

    for name in ("volume", "threshold"):
        slider = page.locator(f"#{name}")
        if slider.count() == 0:
            continue
        found["named"] &= page.locator(f"label[for={name}]").count() == 1
        before = state()
        slider.focus()
        drawn = page.evaluate("document.body.dataset.drawn")
        page.keyboard.press("End")
        page.wait_for_function("was => document.body.dataset.drawn !== was", arg=drawn, timeout=10_000)
        after = state()
        found["sliders"].append({"name": name, **{key: before[key] != after[key] for key in before}})
        page.screenshot(path=screenshots / f"{name}-moved.png", full_page=True)
    return found


def bars(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold, with what was seen."""
    moves = {slider["name"]: slider for slider in seen["sliders"]}
    threshold = moves.get("threshold", {})
    told = [
        ("requests to a network", len(seen["requests"]), 0),
        ("console messages", len(seen["console"]), 0),
        ("volume slider changes chart and ranking", moves["volume"]["chart"] and moves["volume"]["rank"], True),
        (
            "threshold slider changes chart and stated crossover",
            threshold.get("chart", False) and threshold.get("crossover", False),
            True,
        ),
        ("sliders have labels", seen["named"], True),
        ("prints on white, also in dark", seen["printed_paper"], "rgb(255, 255, 255)"),
        ("a phone's width scrolls sideways", seen["narrow_scrolls_sideways"], False),
        ("says all without a script", seen["without_script"], True),
    ]
    return [
        {"name": f"page: {name}", "value": value, "target": target, "unit": "", "holds": value == target}
        for name, value, target in told
    ]


def made(folder: Path) -> Path:
    """A page of a made-up ledger."""
    sys.path.insert(0, str(ROOT))
    from made_ledger import ledger

    from cost.page import page
    from cost.report import build

    file = folder / "report.html"
    file.write_text(page(build([ledger(folder / "made.db", days=30, a_day=400)], by="tenant")), encoding="utf-8")
    return file


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--page", type=Path)
    arguments.add_argument("--screenshots", type=Path, default=ROOT / "bench" / "out" / "page")
    given = arguments.parse_args()
    out = ROOT / "bench" / "out"
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        try:
            executable = chromium(ROOT / ".bench-venvs" / "chromium")
            seen = checks(given.page or made(Path(folder)), executable, given.screenshots)
            result = {"bars": bars(seen), "not_run": [], "seen": seen}
        except NotRun as reason:
            result = {"bars": [], "not_run": [{"name": "page in headless Chromium", "reason": str(reason)}]}
    (out / "browser.json").write_text(json.dumps(result, indent=2) + "\n")
    for bar in result["bars"]:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']} (target {bar['target']})")
    for each in result["not_run"]:
        print(f"not run  {each['name']}: {each['reason']}")
    for kind in ("console", "requests", "too_wide"):
        for text in result.get("seen", {}).get(kind, []):
            print(f"  {kind}: {text}")
    sys.exit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
