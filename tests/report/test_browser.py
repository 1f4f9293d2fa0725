"""The page in a real browser without a window: its script runs under its own policy, and nobody else's does."""

import shutil
import subprocess

import pytest

from mmrl.report.build import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


@pytest.fixture
def seen(tmp_path):
    """A function that gives the page as it is after it was opened."""
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(BROWSERS)}")

    def opened(folder):
        page = write_report([folder], tmp_path / "page.html")
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom")
        rest = (f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000")
        done = subprocess.run(
            [browser, *flags, *rest, f"file://{page}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout

    return opened


def test_our_script_runs_and_no_other(make_run, sample, seen):
    """The script offers numbers per token; a hostile text that ran would have taken the page away."""
    kill = "document.documentElement.remove()"
    evil = f"<script>{kill}</script><img src=x onerror='{kill}'><svg onload='{kill}'>"
    rows, near = sample(1, evil, text=evil, question=evil)
    near["answers"] = [{"tokens": [evil], "logp": [-1.0], evil: [1.0]}]
    metrics = [{"step": n, "reward/total": n, f"x/{evil}": n} for n in range(5)]
    page = seen(make_run(metrics=metrics, samples=rows, closeups=[near]))
    assert 'data-offered="1"' in page and ">logp</button>" in page
    assert page.count("<svg") == 2  # the two charts
    assert '<img src="x"' not in page and "<title>run – mmrl report</title>" in page
