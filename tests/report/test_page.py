"""The page is safe whatever a run holds, and needs nobody but itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from mmrl.report.build import report_page, write_report
from mmrl.report.page import is_page, render
from mmrl.report.run_files import read_run

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</pre></details></main><h1>gone</h1>",
    '<svg onload="alert(3)"><script>alert(4)</script></svg>',
    '"><img src=x onerror=alert(5)>',
    "' onmouseover='alert(6)",
    "[click](javascript:alert(7))",
    "javascript:alert(8)",
    "<a href='javascript:alert(9)'>x</a>",
    "<iframe srcdoc='<script>alert(10)</script>'></iframe>",
    "<style>body{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- ",
    "]]>",
    "<![CDATA[ <b>",
    "&lt;script&gt;&#60;script&#62;",
    "\u202egnp.exe\u2066 \x1b[2J\x00 \ud800",
    "<base href='https://example.org/'><meta http-equiv=refresh content='0;url=javascript:1'>",
)
PICTURES = (
    "javascript:alert(1)",
    "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+",
    "data:text/html,<script>alert(1)</script>",
    "https://example.org/x.png",
    'data:image/png;base64,AAAA" onerror="alert(1)',
    "data:image/png;base64,AAAA\n",
    17,
    None,
)
TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title style body a header h1 h2 h3 h4 nav div button span dialog p kbd form main section "
        "article dl dt dd small b i strong label input details summary figure figcaption svg g path text circle ul ol "
        "li output table thead tbody tr th td pre img script",
    )
)


class Reader(HTMLParser):
    """Everything that a browser could act on."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self.inside = [], [], [], None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.texts).append(data)


def refuse_danger(page):
    """Assert that a page holds nothing but elements of ours, without handlers, links away or foreign pictures."""
    reader = Reader(page)
    for tag, attrs in reader.elements:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("srcdoc", "action", "style", "srcset", "xlink:href"), (
                tag,
                name,
            )
            if name == "href":
                assert value.startswith("#"), value
            if name == "src":
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
            if name == "http-equiv":
                assert value == "Content-Security-Policy"
    kinds = [dict(attrs).get("type") for tag, attrs in reader.elements if tag == "script"]
    assert kinds.count(None) == 1 and set(kinds) <= {None, "application/json"}
    (policy,) = [dict(at)["content"] for tag, at in reader.elements if "http-equiv" in dict(at)]
    assert "script-src 'sha256-" in policy and "default-src 'none'" in policy
    for each in reader.scripts:
        assert "alert(" not in each or "<" not in each
    assert not any(sign in page for sign in "\x00\x1b\u202e\u2066")
    return reader


def hostile_run(make_run, sample, evil, uri):
    """A run that holds one hostile text wherever a text can stand."""
    near_rows, near = sample(1, evil, text=evil, uri=uri, question=evil)
    near["pictures"][evil] = near["pictures"]["raw"]
    near["answers"] = [{"tokens": [evil], "logp": [1.0], evil: [2.0]}]
    metrics = [
        {
            "step": n,
            "reward/total": n,
            f"branch/{evil}/kl": n,
            f"x/{evil}": n,
            "eval/accuracy": n,
        }
        for n in range(3)
    ]
    metrics[-1]["alarm/" + evil] = 1.0
    return make_run(
        settings={
            "a": evil,
            evil: [evil],
            "policy": {"source": evil},
            "prompts": {"class": evil},
        },
        metrics=metrics,
        samples=[
            {**row, "parts": {evil: 1.0}, "stop": evil, "truth": evil} for row in near_rows
        ],
        closeups=[near],
        eval=[
            {"step": n, "prompt": evil, "score": n, "answer": evil, "question": evil}
            for n in (0, 2)
        ],
        skipped=[{"row": evil, "side": evil, "reason": evil}],
        quarantine=[{"where": evil, "reason": evil, "detail": evil}],
    )


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_texts_are_texts(make_run, sample, evil):
    folder = hostile_run(make_run, sample, evil, "javascript:alert(1)")
    page = report_page([read_run(folder)])
    reader = refuse_danger(page)
    # It is shown, as a text: escaping is no excuse for leaving out.
    plain = evil.split("\x1b")[0].split("\u202e")[0]
    assert any(plain.strip() in text for text in reader.texts)
    for tag, attrs in reader.elements:
        if tag == "svg":
            assert dict(attrs).get("viewBox".lower()) == "0 0 360 160"


@pytest.mark.parametrize("uri", PICTURES)
def test_only_pixels_are_pictures(make_run, sample, uri):
    page = report_page([read_run(hostile_run(make_run, sample, "x", uri))])
    assert not [tag for tag, _ in refuse_danger(page).elements if tag == "img"]


def test_pixels_are_shown(make_run, sample):
    rows, near = sample(1)
    folder = make_run(metrics=[{"step": 1, "reward/total": 1.0}], samples=rows, closeups=[near])
    reader = refuse_danger(report_page([read_run(folder)]))
    assert [tag for tag, _ in reader.elements].count("img") == 2


def test_numbers_per_token_reach_the_script(make_run, sample):
    rows, near = sample(1, text="</script>", tokens=2)
    folder = make_run(metrics=[{"step": 1, "reward/total": 1.0}], samples=rows, closeups=[near])
    _, heat, _ = refuse_danger(report_page([read_run(folder)])).scripts
    assert json.loads(heat)[0] == {
        "tokens": ["</script>", "</script>"],
        "maps": {"logp": [-0.1, -0.1], "dependence/masked": [0.5, 0.5]},
    }


def test_a_value_that_a_template_lacks_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("report.html", kind="report", title="t", heading="h")


def test_a_file_of_somebody_else_is_not_replaced(make_run, tmp_path):
    folder, mine = make_run(metrics=[{"step": 1, "a/b": 1.0}]), tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="is no report of mmrl"):
        write_report([folder], mine)
    assert mine.read_text() == "<p>mine</p>"
    mine.unlink()
    for _ in range(2):
        write_report([folder], mine)
        assert is_page(mine.read_text(), "report") and not is_page(mine.read_text(), "preview")
